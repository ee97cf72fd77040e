"""From elements to the tree of a prompt."""

from collections.abc import Iterable
from dataclasses import dataclass

from vllm_promptcache.errors import PMLError
from vllm_promptcache.pml.ast import (
    RESERVED_NAMES,
    Argument,
    Import,
    Prompt,
    PromptNode,
    Role,
    Source,
    Text,
)
from vllm_promptcache.pml.attributes import NAME_HINT, AttributeReader, is_name
from vllm_promptcache.pml.content import ROLES
from vllm_promptcache.pml.diagnostics import pml_error, quote, shorten
from vllm_promptcache.pml.elements import Attribute, Element


@dataclass(frozen=True, slots=True)
class PromptBuilder:
    """Builds the nodes of one document. Its methods raise PMLError where a rule is broken."""

    source: Source

    def prompt(self, root: Element) -> Prompt:
        """Builds the whole tree from a `<prompt>`."""
        attributes = AttributeReader(self.source, root)
        attributes.allow_only(("schema", "encode", "repair", "max-kl"))
        schema, children = attributes.name("schema"), self._children(root, in_role=False)
        if _is_empty(children):
            hint = "import a module or write some text"
            raise pml_error(self.source, root.location, "an empty prompt", hint)
        return Prompt(
            schema=schema,
            is_exact=attributes.choice("encode", {"exact": True}) or False,
            repair=attributes.repair("repair"),
            max_kl=attributes.decimal("max-kl"),
            children=children,
            source=self.source,
            location=root.location,
        )

    def _children(self, element: Element, in_role: bool) -> tuple[PromptNode, ...]:
        return tuple(self._node(child, in_role) for child in element.children)

    def _node(self, node: Element | Text, in_role: bool) -> PromptNode:
        if isinstance(node, Text):
            return node
        if node.name in ROLES:
            return self._role(node, in_role)
        if node.name in RESERVED_NAMES:
            raise self._schema_element(node)
        arguments = tuple(map(self._argument, node.attributes.values()))
        return Import(node.name, arguments, self._children(node, in_role), node.location)

    def _role(self, element: Element, in_role: bool) -> Role[PromptNode]:
        if in_role:
            message = f"role `<{element.name}>` inside a role"
            raise pml_error(self.source, element.location, message, "close the outer role first")
        AttributeReader(self.source, element).allow_only(())
        children = self._children(element, in_role=True)
        return Role(ROLES[element.name], children, element.location)

    def _argument(self, attribute: Attribute) -> Argument:
        if not is_name(attribute.name):
            message = f"{quote(attribute.name)} is not a parameter name"
            raise pml_error(self.source, attribute.location, message, NAME_HINT)
        return Argument(attribute.name, attribute.value, attribute.location)

    def _schema_element(self, element: Element) -> PMLError:
        message = f"`<{element.name}>` may not stand in a prompt"
        name = element.attributes.get("name")
        hint = "it belongs in a schema"
        if element.name == "module" and name is not None:
            hint = f"import it as `<{shorten(name.value)}/>`"
        return pml_error(self.source, element.location, message, hint)


def _is_empty(children: Iterable[PromptNode]) -> bool:
    return all(isinstance(child, Role) and _is_empty(child.children) for child in children)
