"""Checks that need more than a grammar: tags that match, and limits, both before a tree grows."""

import re
from dataclasses import dataclass, field

from lark import Token

from vllm_promptcache.pml.ast import RESERVED_NAMES, Location, Source
from vllm_promptcache.pml.diagnostics import error_at, shorten
from vllm_promptcache.pml.source import Limits

_TAG_NAME = re.compile(r"</?([A-Za-z0-9_.-]+)")


def tag_name(tag: str) -> str:
    """Name of the element that a tag opens or closes."""
    found = _TAG_NAME.match(tag)
    assert found is not None, "the lexer lets only tags through"
    return found[1]


def start_of(token: Token) -> Location:
    """Where a token begins; those of the lexer always know."""
    return Location(token.line or 1, token.column or 1)


def is_module(name: str) -> bool:
    """Whether an element of that name defines or imports a module."""
    return name == "module" or name not in RESERVED_NAMES


@dataclass(slots=True)
class Nesting:
    """What is open at one place of the document; follows the tokens one by one."""

    source: Source
    limits: Limits
    open_tags: list[Token] = field(default_factory=list)
    num_nodes: int = 0
    num_modules: int = 0

    def enter(self, token: Token) -> None:
        """Takes the next token.

        Raises:
            PMLError: It closes an element that is not the innermost one, or exceeds a limit.
        """
        if token.type == "END_TAG":
            self._close(token)
            return
        self.num_nodes += 1
        self._limit(token, self.num_nodes, self.limits.max_nodes, "elements and texts")
        if token.type in ("START_TAG", "EMPTY_TAG"):
            self._open(token)

    def end(self) -> None:
        """Takes the end of the document.

        Raises:
            PMLError: An element is still open.
        """
        if self.open_tags:
            name = shorten(tag_name(self.open_tags[-1]))
            where = self.open_tags[-1].start_pos or 0
            raise error_at(self.source, where, f"`<{name}>` is never closed", f"add `</{name}>`")

    def _open(self, tag: Token) -> None:
        name = tag_name(tag)
        self.num_modules += is_module(name)
        self._limit(tag, self.num_modules, self.limits.max_modules, "modules")
        self._limit(tag, len(self.open_tags) + 1, self.limits.max_depth, "levels of nesting")
        if tag.type == "START_TAG":
            self.open_tags.append(tag)

    def _close(self, tag: Token) -> None:
        if not self.open_tags:
            return  # The grammar refuses it.
        opened = self.open_tags.pop()
        if tag_name(opened) != tag_name(tag):
            name = shorten(tag_name(opened))
            message = (
                f"`</{shorten(tag_name(tag))}>` closes `<{name}>`, "
                f"which was opened at {opened.line}:{opened.column}"
            )
            raise error_at(self.source, tag.start_pos or 0, message, f"write `</{name}>` before it")

    def _limit(self, token: Token, num: int, limit: int, what: str) -> None:
        if num > limit:
            raise error_at(self.source, token.start_pos or 0, f"more than {limit} {what}")
