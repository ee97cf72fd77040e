"""Reads the attributes of an element into values of the types that the tree wants."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TypeVar

from vllm_promptcache.errors import PMLError
from vllm_promptcache.pml.diagnostics import did_you_mean, quote
from vllm_promptcache.pml.document import Document
from vllm_promptcache.pml.markup import Attribute, Element

NAME_HINT = "a name begins with a letter or `_`; then letters, digits, `_`, `.` and `-`"

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_POSITIVE = re.compile(r"[1-9][0-9]*")
_MAX_NUMBER = 1_000_000

_Value = TypeVar("_Value")


def is_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class AttributeReader:
    """The attributes of one element. Every method raises PMLError at the attribute at fault."""

    document: Document
    element: Element

    def allow_only(self, known: Collection[str]) -> None:
        for attribute in self.element.attributes.values():
            if attribute.name not in known:
                message = f"`<{self.element.name}>` has no attribute {quote(attribute.name)}"
                hint = did_you_mean(attribute.name, known) or _known(known)
                raise self.document.error(attribute.offset, message, hint)

    def get(self, *spellings: str) -> Attribute | None:
        """The attribute in whichever of its spellings it has, at most one of them."""
        given = [a for a in map(self.element.attributes.get, spellings) if a is not None]
        if len(given) > 1:
            message = f"`{given[1].name}` is another spelling of `{given[0].name}`"
            raise self.document.error(given[1].offset, message, "leave one out")
        return given[0] if given else None

    def text(self, *spellings: str) -> str | None:
        attribute = self.get(*spellings)
        return None if attribute is None else attribute.value

    def require(self, *spellings: str) -> Attribute:
        attribute = self.get(*spellings)
        if attribute is None:
            name, tag = spellings[0], self.element.name
            message = f"`<{tag}>` has no `{name}`"
            raise self.document.error(self.element.offset, message, f'write `<{tag} {name}="...">`')
        return attribute

    def name(self, key: str) -> str:
        attribute = self.require(key)
        if not is_name(attribute.value):
            raise self.error(attribute, f"{quote(attribute.value)} is not a name", NAME_HINT)
        return attribute.value

    def positive(self, *spellings: str) -> int:
        attribute = self.require(*spellings)
        if not _POSITIVE.fullmatch(attribute.value):
            message = f"`{attribute.name}` is not a positive whole number"
            raise self.error(attribute, message, 'write digits only, such as "8"')
        # Comparing lengths first: int() refuses numbers of thousands of digits.
        value = attribute.value
        if len(value) > len(str(_MAX_NUMBER)) or int(value) > _MAX_NUMBER:
            raise self.error(attribute, f"`{attribute.name}` is more than {_MAX_NUMBER}")
        return int(value)

    def choice(self, key: str, values: Mapping[str, _Value]) -> _Value | None:
        attribute = self.get(key)
        if attribute is None:
            return None
        if attribute.value not in values:
            message = f"{quote(attribute.value)} is no value of `{key}`"
            raise self.error(attribute, message, f"write {' or '.join(map(quote, values))}")
        return values[attribute.value]

    def boolean(self, key: str, default: bool) -> bool:
        value = self.choice(key, {"true": True, "false": False})
        return default if value is None else value

    def error(self, attribute: Attribute, message: str, hint: str | None = None) -> PMLError:
        """Makes the error about an attribute's value, for the caller to raise."""
        return self.document.error(attribute.value_offset, message, hint)


def _known(known: Collection[str]) -> str:
    names = ", ".join(map(quote, known))
    return f"it takes {names}" if names else "it takes no attributes"
