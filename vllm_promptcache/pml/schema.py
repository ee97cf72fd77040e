"""From elements to the tree of a schema."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from vllm_promptcache.pml.ast import (
    RESERVED_NAMES,
    LayoutName,
    Module,
    OrderName,
    Param,
    Pin,
    Primer,
    Role,
    Scaffold,
    Schema,
    SchemaNode,
    Source,
    Text,
    Union,
)
from vllm_promptcache.pml.attributes import MODULE_ENCODE, AttributeReader
from vllm_promptcache.pml.content import ROLES, checked_children
from vllm_promptcache.pml.diagnostics import pml_error, quote
from vllm_promptcache.pml.elements import Attribute, Element
from vllm_promptcache.pml.files import FileReader, FileRefusedError
from vllm_promptcache.pml.text import plain_text
from vllm_promptcache.policies import ENCODE_NAMES, EncodeName

_ENCODE: Mapping[str, EncodeName] = {name: name for name in ENCODE_NAMES}
_LAYOUT: Mapping[str, LayoutName] = {layout: layout for layout in get_args(LayoutName)}
_ORDER: Mapping[str, OrderName] = {order: order for order in get_args(OrderName)}
_PRIMER_FROM: Mapping[str, Literal["modules"]] = {"modules": "modules"}
_SCHEMA_ATTRIBUTES = ("name", "encode", "repair", "layout", "order", "private", "pin", "ttl")
_MODULE_ATTRIBUTES = ("name", "encode", "repair", "src", "cache", "pin", "ttl")
_PARAM_ATTRIBUTES = ("name", "len", "placeholder", "length", "scaffold")


@dataclass(frozen=True, slots=True)
class SchemaBuilder:
    """Builds the nodes of one document. Its methods raise PMLError where a rule is broken."""

    source: Source
    files: FileReader

    def schema(self, root: Element) -> Schema:
        """Builds the whole tree from a `<schema>`; rules across elements are not checked yet."""
        attributes = self._attributes(root, *_SCHEMA_ATTRIBUTES)
        return Schema(
            name=attributes.name("name"),
            children=self._children(root),
            encode=attributes.choice("encode", _ENCODE),
            repair=attributes.repair("repair"),
            layout=attributes.choice("layout", _LAYOUT) or "schema",
            order=attributes.choice("order", _ORDER) or "prompt",
            private=attributes.boolean("private", default=False),
            pin=_pin(attributes),
            scaffolds=tuple(map(self._scaffold, _named("scaffold", root))),
            source=self.source,
            location=root.location,
            primer=self._primer(root),
        )

    def _children(self, element: Element) -> tuple[SchemaNode, ...]:
        children = checked_children(self.source, element)
        return tuple(self._node(child) for child in children if not _is_apart(child))

    def _node(self, node: Element | Text) -> SchemaNode:
        if isinstance(node, Text):
            return node
        match node.name:
            case "module":
                return self._module(node)
            case "union":
                return self._union(node)
            case "param" | "parameter":
                return self._param(node)
            case _:
                return self._role(node)

    def _module(self, element: Element) -> Module:
        attributes = self._attributes(element, *_MODULE_ATTRIBUTES)
        name = attributes.name("name")
        if name in RESERVED_NAMES:
            message = f"a module may not be named `{name}`"
            hint = f"`<{name}>` has a meaning of its own; choose another name"
            raise attributes.error(attributes.require("name"), message, hint)
        src = attributes.get("src")
        return Module(
            name=name,
            children=tuple(self._file(src, element)) if src else self._children(element),
            encode=attributes.choice("encode", MODULE_ENCODE),
            cached=attributes.boolean("cache", default=True),
            repair=attributes.repair("repair"),
            pin=_pin(attributes),
            location=element.location,
            primer=self._primer(element),
        )

    def _file(self, src: Attribute, element: Element) -> Iterator[Text]:
        if element.children:
            message = "a module with `src` may have no content of its own"
            raise pml_error(self.source, src.location, message, "leave out one of the two")
        try:
            text = plain_text(self.files.read(src.value), element.preserve)
        except FileRefusedError as error:
            message = f"file {quote(src.value)} {error}"
            raise pml_error(self.source, src.value_location, message) from None
        if text:
            yield Text(text, src.value_location)

    def _union(self, element: Element) -> Union:
        attributes = self._attributes(element, "default", "scaffold")
        children = checked_children(self.source, element)
        return Union(
            members=tuple(self._module(child) for child in children if isinstance(child, Element)),
            default=attributes.text("default", "scaffold"),
            location=element.location,
        )

    def _param(self, element: Element) -> Param:
        attributes = self._attributes(element, *_PARAM_ATTRIBUTES)
        self._children(element)  # There may be none.
        name = attributes.name("name")
        if name.startswith("xml"):
            message = f"a parameter may not be named {quote(name)}"
            hint = "names that begin with `xml` are reserved"
            raise attributes.error(attributes.require("name"), message, hint)
        return Param(
            name=name,
            length=attributes.positive("len", "length"),
            placeholder=attributes.text("placeholder", "scaffold"),
            location=element.location,
        )

    def _role(self, element: Element) -> Role[SchemaNode]:
        self._attributes(element)
        return Role(ROLES[element.name], self._children(element), element.location)

    def _scaffold(self, element: Element) -> Scaffold:
        attributes = self._attributes(element, "modules")
        checked_children(self.source, element)  # There may be none.
        paths = tuple(attributes.require("modules").value.split())
        return Scaffold(paths, element.location)

    def _primer(self, parent: Element) -> Primer | None:
        """The primer of the modules in an element, if it has one."""
        primers = list(_named("primer", parent))
        if len(primers) > 1:
            first, second = primers[0].location, primers[1].location
            message, hint = "a second primer", f"leave one out; the first one is at {first}"
            raise pml_error(self.source, second, message, hint)
        return self._read_primer(primers[0]) if primers else None

    def _read_primer(self, element: Element) -> Primer:
        attributes = self._attributes(element, "from")
        origin = attributes.choice("from", _PRIMER_FROM)
        children = checked_children(self.source, element)
        text = "".join(child.text for child in children if isinstance(child, Text))
        if origin and text:
            message = "a primer with `from` may have no text of its own"
            raise pml_error(self.source, element.location, message, "leave out one of the two")
        if not origin and not text.strip():
            message, hint = "a primer without text", 'write some, or `<primer from="modules"/>`'
            raise pml_error(self.source, element.location, message, hint)
        return Primer(None if origin else text, element.location)

    def _attributes(self, element: Element, *known: str) -> AttributeReader:
        attributes = AttributeReader(self.source, element)
        attributes.allow_only(known)
        return attributes


def _pin(attributes: AttributeReader) -> Pin | Literal[False] | None:
    pinned, ttl_s = attributes.boolean("pin", default=None), attributes.seconds("ttl")
    if ttl_s is not None and not pinned:
        ttl = attributes.require("ttl")
        raise attributes.error(ttl, "`ttl` goes with a pin", 'write `pin="true"` as well')
    return Pin(ttl_s) if pinned else pinned


def _named(name: str, parent: Element) -> Iterator[Element]:
    """Children of an element that are elements of that name."""
    return (child for child in parent.children if isinstance(child, Element) and child.name == name)


def _is_apart(node: Element | Text) -> bool:
    """Whether a child of a schema's element is about its modules, and none of its content."""
    return isinstance(node, Element) and node.name in ("primer", "scaffold")
