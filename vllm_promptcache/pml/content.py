"""Which element of a schema may stand in which, and where text may."""

from collections.abc import Mapping
from typing import get_args

from vllm_promptcache.errors import PMLError
from vllm_promptcache.pml.ast import RESERVED_NAMES, RoleName, Source, Text
from vllm_promptcache.pml.diagnostics import did_you_mean, pml_error, quote
from vllm_promptcache.pml.elements import Element
from vllm_promptcache.pml.text import WHITE_SPACE

ROLES: Mapping[str, RoleName] = {role: role for role in get_args(RoleName)}

_BODY = ("module", "union", "param", "parameter", *ROLES)
_CONTENT: Mapping[str, tuple[str, ...]] = {
    "schema": (*_BODY, "primer", "scaffold"),
    "module": (*_BODY, "primer"),
    "union": ("module",),
    "param": (),
    "parameter": (),
    "scaffold": (),
    "primer": (),
    **dict.fromkeys(ROLES, _BODY),
}
_HOLDS_TEXT = frozenset(("schema", "module", "primer", *ROLES))


def checked_children(source: Source, element: Element) -> tuple[Element | Text, ...]:
    """Children of a schema's element, without white space where text has no meaning.

    Raises:
        PMLError: A child may not stand in this element.
    """
    return tuple(child for child in element.children if _is_content(source, child, element))


def _is_content(source: Source, child: Element | Text, parent: Element) -> bool:
    if isinstance(child, Element):
        if child.name not in _CONTENT[parent.name]:
            raise _misplaced(source, child, parent)
        return True
    if parent.name in _HOLDS_TEXT:
        return True
    if child.text.strip(WHITE_SPACE):
        hint = _allowed_hint(parent)
        raise pml_error(source, child.location, f"text inside `<{parent.name}>`", hint)
    return False


def _misplaced(source: Source, child: Element, parent: Element) -> PMLError:
    tag = quote(f"<{child.name}>")
    if child.name in RESERVED_NAMES:
        message, hint = f"{tag} may not stand in `<{parent.name}>`", _allowed_hint(parent)
    else:
        near = did_you_mean(child.name, _CONTENT[parent.name])
        message, hint = f"unknown element {tag}", near or _allowed_hint(parent)
    return pml_error(source, child.location, message, hint)


def _allowed_hint(parent: Element) -> str:
    text = ("text",) if parent.name == "primer" else ()
    allowed = ", ".join((*text, *(f"`<{name}>`" for name in _CONTENT[parent.name])))
    return f"`<{parent.name}>` may hold {allowed or 'nothing'}"
