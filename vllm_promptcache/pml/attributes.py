"""Reads the attributes of an element into values of the types that the tree wants."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TypeVar

from vllm_promptcache.errors import PMLError
from vllm_promptcache.pml.ast import Source
from vllm_promptcache.pml.diagnostics import did_you_mean, pml_error, quote
from vllm_promptcache.pml.elements import Attribute, Element
from vllm_promptcache.policies import ENCODE_NAMES, REPAIR_HINT, EncodeName, Repair

NAME_HINT = "a name begins with a letter or `_`; then letters, digits, `_`, `.` and `-`"

DURATION_HINT = 'write a number and one of `s`, `m`, `h`, `d`, such as "90s" or "1h"'

# `exact` is about all that a prompt imports.
MODULE_ENCODE: Mapping[str, EncodeName] = {name: name for name in ENCODE_NAMES if name != "exact"}
"""How a module may be encoded."""

MAX_NAME_LEN = 200
"""Characters of a name; a schema's is that of a file as well."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_POSITIVE = re.compile(r"[1-9][0-9]*")
_MAX_NUMBER = 1_000_000

_DECIMAL = re.compile(r"[0-9]{1,6}(\.[0-9]{1,12})?")

_DURATION = re.compile(r"([1-9][0-9]{0,6})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

_Value = TypeVar("_Value")
_Default = TypeVar("_Default", bool, None)


def is_name(text: str) -> bool:
    """Whether modules, parameters and schemas may be named so."""
    return _NAME.fullmatch(text) is not None


def parse_duration(text: str) -> int | None:
    """Seconds of a duration such as `90s`, `15m`, `1h` or `7d`; None if it is none."""
    match = _DURATION.fullmatch(text)
    return int(match[1]) * _SECONDS[match[2]] if match else None


@dataclass(frozen=True, slots=True)
class AttributeReader:
    """The attributes of one element. Every method raises PMLError at the attribute at fault."""

    source: Source
    element: Element

    def allow_only(self, known: Collection[str]) -> None:
        """Refuses attributes that this element does not have."""
        for attribute in self.element.attributes.values():
            if attribute.name not in known:
                message = f"`<{self.element.name}>` has no attribute {quote(attribute.name)}"
                hint = did_you_mean(attribute.name, known) or _known(known)
                raise pml_error(self.source, attribute.location, message, hint)

    def get(self, *spellings: str) -> Attribute | None:
        """The attribute in one of its spellings, of which at most one may be given."""
        given = [a for a in map(self.element.attributes.get, spellings) if a is not None]
        if len(given) > 1:
            message = f"`{given[1].name}` is another spelling of `{given[0].name}`"
            raise pml_error(self.source, given[1].location, message, "leave one out")
        return given[0] if given else None

    def text(self, *spellings: str) -> str | None:
        """The value of an attribute that may be left out."""
        attribute = self.get(*spellings)
        return None if attribute is None else attribute.value

    def require(self, *spellings: str) -> Attribute:
        """Like `get` for an attribute that must be given; the first spelling is the usual one."""
        attribute = self.get(*spellings)
        if attribute is None:
            name, tag = spellings[0], self.element.name
            message, hint = f"`<{tag}>` has no `{name}`", f'write `<{tag} {name}="...">`'
            raise pml_error(self.source, self.element.location, message, hint)
        return attribute

    def name(self, key: str) -> str:
        """A required name of PML."""
        attribute = self.require(key)
        if len(attribute.value) > MAX_NAME_LEN:
            message = f"`{key}` has more than {MAX_NAME_LEN} characters"
            raise self.error(attribute, message, "choose a shorter name")
        if not is_name(attribute.value):
            raise self.error(attribute, f"{quote(attribute.value)} is not a name", NAME_HINT)
        return attribute.value

    def positive(self, *spellings: str) -> int:
        """A required number from 1 to a million."""
        attribute = self.require(*spellings)
        if not _POSITIVE.fullmatch(attribute.value):
            message = f"`{attribute.name}` is not a positive whole number"
            raise self.error(attribute, message, 'write digits only, such as "8"')
        # Comparing lengths first: int() refuses numbers of thousands of digits.
        value = attribute.value
        if len(value) > len(str(_MAX_NUMBER)) or int(value) > _MAX_NUMBER:
            raise self.error(attribute, f"`{attribute.name}` is more than {_MAX_NUMBER}")
        return int(value)

    def decimal(self, key: str) -> float | None:
        """A number from 0 on, such as `0.05`, None without the attribute."""
        attribute = self.get(key)
        if attribute is None:
            return None
        if not _DECIMAL.fullmatch(attribute.value):
            message = f"`{key}` is not a number from 0 on"
            raise self.error(attribute, message, 'write digits, such as "0.05"')
        return float(attribute.value)

    def choice(self, key: str, values: Mapping[str, _Value]) -> _Value | None:
        """What `values` has for the attribute, None without the attribute."""
        attribute = self.get(key)
        if attribute is None:
            return None
        if attribute.value not in values:
            message = f"{quote(attribute.value)} is no value of `{key}`"
            raise self.error(attribute, message, f"write {' or '.join(map(quote, values))}")
        return values[attribute.value]

    def boolean(self, key: str, default: _Default) -> bool | _Default:
        """`true` or `false`."""
        value = self.choice(key, {"true": True, "false": False})
        return default if value is None else value

    def seconds(self, key: str) -> int | None:
        """A duration such as `90s` or `1h`, None without the attribute."""
        attribute = self.get(key)
        if attribute is None:
            return None
        value = parse_duration(attribute.value)
        if value is None:
            raise self.error(attribute, f"`{key}` is no duration", DURATION_HINT)
        return value

    def repair(self, key: str) -> Repair | None:
        """A repair such as `head:16`, None without the attribute."""
        attribute = self.get(key)
        if attribute is None:
            return None
        value = Repair.parse(attribute.value)
        if value is None:
            raise self.error(attribute, f"{quote(attribute.value)} is no `{key}`", REPAIR_HINT)
        return value

    def error(self, attribute: Attribute, message: str, hint: str | None = None) -> PMLError:
        """Makes the error about an attribute's value, for the caller to raise."""
        return pml_error(self.source, attribute.value_location, message, hint)


def _known(known: Collection[str]) -> str:
    names = ", ".join(map(quote, known))
    return f"it takes {names}" if names else "it takes no attributes"
