"""From elements to the tree of a prompt."""

from collections.abc import Iterable
from dataclasses import dataclass

from vllm_promptcache.errors import PMLError
from vllm_promptcache.pml.ast import (
    RESERVED_NAMES,
    Argument,
    Import,
    Inline,
    Prompt,
    PromptNode,
    Role,
    RoleName,
    Source,
    Text,
)
from vllm_promptcache.pml.attributes import MODULE_ENCODE, NAME_HINT, AttributeReader, is_name
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
        children = self._children(root, None)
        schema = attributes.name("schema") if "schema" in root.attributes else None
        if schema is None and not any(map(_has_inline, children)):
            hint = 'write `<prompt schema="...">`, or put text that prompts share into `<module>`'
            raise pml_error(self.source, root.location, "`<prompt>` has no `schema`", hint)
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

    def _children(self, element: Element, role: RoleName | None) -> tuple[PromptNode, ...]:
        return tuple(self._node(child, role) for child in element.children)

    def _node(self, node: Element | Text, role: RoleName | None) -> PromptNode:
        if isinstance(node, Text):
            return node
        if node.name in ROLES:
            return self._role(node, role)
        if node.name == "module":
            return self._inline(node, role)
        if node.name in RESERVED_NAMES:
            raise self._schema_element(node)
        arguments = tuple(map(self._argument, node.attributes.values()))
        return Import(node.name, arguments, self._children(node, role), node.location)

    def _role(self, element: Element, around: RoleName | None) -> Role[PromptNode]:
        if around is not None:
            message = f"role `<{element.name}>` inside a role"
            raise pml_error(self.source, element.location, message, "close the outer role first")
        AttributeReader(self.source, element).allow_only(())
        role = ROLES[element.name]
        return Role(role, self._children(element, role), element.location)

    def _inline(self, element: Element, role: RoleName | None) -> Inline:
        attributes = AttributeReader(self.source, element)
        attributes.allow_only(("name", "encode", "repair"))
        name = attributes.name("name") if "name" in element.attributes else None
        for child in element.children:
            if isinstance(child, Element):
                message = f"`<{shorten(child.name)}>` inside a module of a prompt"
                raise pml_error(self.source, child.location, message, "it may hold text only")
        text = "".join(child.text for child in element.children if isinstance(child, Text))
        if not text:
            hint = "write its text into it"
            if name is not None:
                hint += f"; a module of the schema is imported as `<{shorten(name)}/>`"
            raise pml_error(self.source, element.location, "a module without text", hint)
        return Inline(
            text=text,
            role=role,
            name=name,
            encode=attributes.choice("encode", MODULE_ENCODE),
            repair=attributes.repair("repair"),
            location=element.location,
        )

    def _argument(self, attribute: Attribute) -> Argument:
        if not is_name(attribute.name):
            message = f"{quote(attribute.name)} is not a parameter name"
            raise pml_error(self.source, attribute.location, message, NAME_HINT)
        return Argument(attribute.name, attribute.value, attribute.location)

    def _schema_element(self, element: Element) -> PMLError:
        message = f"`<{element.name}>` may not stand in a prompt"
        return pml_error(self.source, element.location, message, "it belongs in a schema")


def _has_inline(node: PromptNode) -> bool:
    if isinstance(node, Import | Role):
        return any(map(_has_inline, node.children))
    return isinstance(node, Inline)


def _is_empty(children: Iterable[PromptNode]) -> bool:
    return all(isinstance(child, Role) and _is_empty(child.children) for child in children)
