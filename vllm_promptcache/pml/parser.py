"""Entry points: from the text of a schema or a prompt to its tree."""

import re
from pathlib import Path
from typing import Literal, TypeAlias

from vllm_promptcache.pml.ast import Prompt, Schema
from vllm_promptcache.pml.files import FileReader
from vllm_promptcache.pml.markup import read_markup
from vllm_promptcache.pml.prompt import PromptBuilder
from vllm_promptcache.pml.schema import SchemaBuilder
from vllm_promptcache.pml.source import (
    DEFAULT_LIMITS,
    PROMPT_LIMITS,
    Limits,
    read_source,
    size_bytes,
)
from vllm_promptcache.pml.validate import validate_schema

PromptKind: TypeAlias = Literal["schema", "inline"]

# Atomic groups keep these linear, however many comments or attributes a plain string begins with.
_PROMPT_START = re.compile(
    r"\ufeff?(?>[ \t\r\n]+|<\?xml[ \t\r\n][^>]*>|<!--.*?-->)*<prompt(?=[ \t\r\n/>])", re.DOTALL
)
_OTHER_ATTRIBUTES = re.compile(
    r"""(?>(?:"[^"<]*"|'[^'<]*'|"[^"]*"(?=[ \t\r\n/>])|'[^']*'(?=[ \t\r\n/>]))"""
    r"""|[ \t\r\n/=]+|(?!schema[ \t\r\n]*=)[^ \t\r\n/=<>"']+)*+"""
)
# Characters within which the first tag begins: every text that is sent to a server is looked at.
_MAX_PROLOG_LEN = 2**18
_SCHEMA = re.compile(r"""[ \t\r\n"'/]schema[ \t\r\n]*=""")
_MODULE = re.compile(r"<module[ \t\r\n/>]")
_END = re.compile(r"</prompt[ \t\r\n]*+>[ \t\r\n]*+\Z")


def prompt_kind(text: str) -> PromptKind | None:
    """Tells what kind of PML prompt a string is meant as, None if as none.

    `schema`: its first tag is `<prompt ... schema=...>`. `inline`: it is a `<prompt>` without that
    attribute, from the first tag to the last, with a `<module>` in it. Takes microseconds. Such a
    string may still be malformed; one that mentions such tags later on is ordinary text, and so is
    any other `<prompt>`, which users write themselves.
    """
    start = _PROMPT_START.match(text, 0, _MAX_PROLOG_LEN)
    if start is None:
        return None
    others = _OTHER_ATTRIBUTES.match(text, start.end())
    assert others is not None, "there may be none"
    if text.startswith("schema", others.end()):
        return "schema"
    if text.startswith(">", others.end()):
        has_module = _MODULE.search(text, others.end()) is not None
        return "inline" if has_module and _END.search(text) else None
    # A quote that is not closed, or a `<`: malformed, which the parser must tell its author.
    end = text.find(">", start.end())
    return "schema" if _SCHEMA.search(text, start.end(), max(end, 0)) else None


def is_prompt(text: str) -> bool:
    """Whether a string is meant as a PML prompt, see `prompt_kind`."""
    return prompt_kind(text) is not None


def parse_schema(
    text: str,
    *,
    name: str = "<schema>",
    base_dir: Path | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Schema:
    """Parses and validates a schema.

    Args:
        text: The document.
        name: File path or another name for error messages.
        base_dir: The folder for `src` attributes; without it they are refused.
        limits: What the document may ask of the parser.

    Raises:
        PMLError: The document breaks a rule; nothing is repaired.
    """
    source = read_source(text, name, limits)
    num_bytes_left = limits.max_document_bytes - size_bytes(source.text)
    builder = SchemaBuilder(source, FileReader(base_dir, num_bytes_left))
    schema = builder.schema(read_markup(source, limits, "schema"))
    validate_schema(schema)
    return schema


def parse_prompt(text: str, *, name: str = "<prompt>", limits: Limits = PROMPT_LIMITS) -> Prompt:
    """Parses a prompt; whether it fits its schema is checked by the planner.

    Args:
        text: The document.
        name: File path or another name for error messages.
        limits: What the document may ask of the parser.

    Raises:
        PMLError: The document breaks a rule; nothing is repaired.
    """
    source = read_source(text, name, limits)
    return PromptBuilder(source).prompt(read_markup(source, limits, "prompt"))
