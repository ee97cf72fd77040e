"""Elements of any name, and the attributes of their tags."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from vllm_promptcache.pml.ast import Location, Source, Text
from vllm_promptcache.pml.diagnostics import advance, pml_error, quote
from vllm_promptcache.pml.text import decode

_SPACE = "xml:space"
# What has found the tag has checked it, so this need not.
_ATTRIBUTE = re.compile(r"""([ \t\n]+)([^ \t\n=<>/"'&]+)([ \t\n]*=[ \t\n]*)("[^"]*"|'[^']*')""")


@dataclass(frozen=True, slots=True)
class Attribute:
    """An attribute, its value decoded; `location` is that of its name."""

    name: str
    value: str
    location: Location
    value_location: Location


@dataclass(slots=True)
class Element:
    """An element of any name.

    Attributes:
        attributes: By name, in document order, without `xml:space`.
        children: Grows while the element is read.
        preserve: Whether `xml:space="preserve"` holds inside.
        location: Where its tag begins.
    """

    name: str
    attributes: Mapping[str, Attribute]
    children: "list[Element | Text]"
    preserve: bool
    location: Location


@dataclass(slots=True)
class TagReader:
    """Reads the attributes of a document's tags, and counts them."""

    source: Source
    max_attributes: int
    num_attributes: int = 0

    def attributes(
        self, tag: str, name: str, location: Location, offset: int, preserve: bool
    ) -> tuple[dict[str, Attribute], bool]:
        """Reads a well-formed tag.

        Args:
            tag: The tag from its `<`.
            name: The name in it.
            location: Where it begins.
            offset: The same place, in characters of the document.
            children: Grows while the element is read.
        preserve: Whether white space is preserved around the element.

        Returns:
            The attributes without `xml:space`, and whether white space is preserved inside.

        Raises:
            PMLError: One is given twice or has a wrong value, or there are too many of them.
        """
        attributes = self._read(tag, len(f"<{name}"), location, offset)
        if space := attributes.pop(_SPACE, None):
            preserve = self._preserves(space)
        return attributes, preserve

    def _read(self, tag: str, end: int, start: Location, offset: int) -> dict[str, Attribute]:
        attributes: dict[str, Attribute] = {}
        behind = advance(start, tag[:end])
        # Not `finditer`: that would look for attributes within a very long name.
        while found := _ATTRIBUTE.match(tag, end):
            attribute = self._attribute(found, behind, offset)
            if attribute.name in attributes:
                message = f"attribute {quote(attribute.name)} is given twice"
                raise pml_error(self.source, attribute.location, message, "leave one out")
            attributes[attribute.name] = attribute
            end, behind = found.end(), advance(behind, found[0])
        return attributes

    def _attribute(self, found: re.Match[str], before: Location, tag_offset: int) -> Attribute:
        space, name, equals, quoted = found.groups()
        location = advance(before, space)
        self.num_attributes += 1
        if self.num_attributes > self.max_attributes:
            raise pml_error(self.source, location, f"more than {self.max_attributes} attributes")
        value = decode(self.source, quoted[1:-1], tag_offset + found.start(4) + 1)
        return Attribute(name, value, location, advance(location, f'{name}{equals}"'))

    def _preserves(self, space: Attribute) -> bool:
        if space.value not in ("preserve", "default"):
            message = f"{quote(space.value)} is no value of `{_SPACE}`"
            hint = "write `preserve` or `default`"
            raise pml_error(self.source, space.value_location, message, hint)
        return space.value == "preserve"
