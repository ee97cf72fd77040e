"""Prints trees as PML, for the round trip."""

from collections.abc import Iterable
from typing import Literal

from vllm_promptcache.pml import (
    Import,
    Inline,
    Module,
    Param,
    Pin,
    Primer,
    Prompt,
    PromptNode,
    Role,
    Schema,
    SchemaNode,
    Text,
    Union,
)
from vllm_promptcache.policies import Repair


def print_schema(schema: Schema) -> str:
    attributes = {
        "name": schema.name,
        "encode": schema.encode,
        "repair": _repair(schema.repair),
        "layout": schema.layout,
        "order": schema.order,
        "private": str(schema.private).lower(),
        **_pin(schema.pin),
    }
    scaffolds = [_element("scaffold", {"modules": " ".join(s.paths)}) for s in schema.scaffolds]
    content = [*map(_node, schema.children), *_primer(schema.primer), *scaffolds]
    return _element("schema", attributes, content)


def print_prompt(prompt: Prompt) -> str:
    attributes = {
        "schema": prompt.schema,
        "encode": "exact" if prompt.is_exact else None,
        "repair": _repair(prompt.repair),
        "max-kl": None if prompt.max_kl is None else str(prompt.max_kl),
    }
    return _element("prompt", attributes, map(_node, prompt.children))


def _node(node: SchemaNode | PromptNode) -> str:
    match node:
        case Text():
            return _escape(node.text)
        case Param():
            length, placeholder = str(node.length), node.placeholder
            return _element("param", {"name": node.name, "len": length, "placeholder": placeholder})
        case Module():
            cache = str(node.cached).lower()
            attributes = {"name": node.name, "encode": node.encode, "cache": cache}
            attributes["repair"] = _repair(node.repair)
            content = [*_primer(node.primer), *map(_node, node.children)]
            return _element("module", attributes | _pin(node.pin), content)
        case Union():
            return _element("union", {"default": node.default}, map(_node, node.members))
        case Role():
            return _element(node.role, {}, map(_node, node.children))
        case Inline():
            attributes = {"name": node.name, "encode": node.encode, "repair": _repair(node.repair)}
            return _element("module", attributes, [_escape(node.text)])
        case Import():
            arguments = {argument.name: argument.value for argument in node.arguments}
            return _element(node.name, dict(arguments), map(_node, node.children))


def _primer(primer: Primer | None) -> list[str]:
    if primer is None:
        return []
    if primer.text is None:
        return [_element("primer", {"from": "modules"})]
    return [_element("primer", {}, [_escape(primer.text)])]


def _repair(repair: Repair | None) -> str | None:
    return None if repair is None else str(repair)


def _pin(pin: Pin | Literal[False] | None) -> dict[str, str | None]:
    if not pin:
        return {"pin": None if pin is None else "false"}
    return {"pin": "true", "ttl": None if pin.ttl_s is None else f"{pin.ttl_s}s"}


def _element(name: str, attributes: dict[str, str | None], content: Iterable[str] = ()) -> str:
    given = {key: value for key, value in attributes.items() if value is not None}
    tag = "".join(f' {key}="{_escape(value)}"' for key, value in given.items())
    return f"<{name}{tag}>{''.join(content)}</{name}>"


def _escape(text: str) -> str:
    return "".join(char if char.isalnum() else f"&#{ord(char)};" for char in text)
