"""What a chat template writes around messages, read again whenever it writes something else.

A template is a program: it may write the date, a random number, or what a request gives it (tools,
a reasoning effort, documents). Parts that were read once hold as long as it writes the same; where
its source cannot do otherwise, that need not be looked at.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from threading import Lock
from time import monotonic
from typing import Any

from cachetools import LRUCache

from vllm_promptcache.errors import UnsupportedError
from vllm_promptcache.layout.chat_template import Render, derive_roles, signature
from vllm_promptcache.layout.roles import ChatRoles
from vllm_promptcache.layout.template_source import can_change

# Characters of parts that are kept for requests that give a template something.
MAX_NUM_CHARS = 16 * 2**20
# A clock that shows minutes is followed, one that shows seconds is not: each change is another text
# for all modules.
MAX_NUM_CHANGES = 4
PERIOD_S = 60.0


@dataclass(slots=True)
class _Reading:
    """The parts of a template as they were read last, and when they changed."""

    signature: str
    roles: ChatRoles
    changes: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_NUM_CHANGES))

    @property
    def num_chars(self) -> int:
        return len(self.signature) + self.roles.num_chars


class TemplateRoles:
    """The parts of one chat template, by what requests give it.

    May be used from many threads.

    Args:
        render: Renders messages as a request that gives the template nothing.
        tokenizer: The tokenizer that it is of.
        bos: Text of the BOS token, empty if there is none.
        eos: Text of the EOS token, empty if there is none.
    """

    def __init__(self, render: Render, tokenizer: Any, *, bos: str, eos: str) -> None:
        self._render, self._tokenizer = render, tokenizer
        self._bos, self._eos = bos, eos
        self._plain: _Reading | None = None
        # The source that `_plain` was read of, and whether it may write something else.
        self._source: object = None
        self._can_change = True
        self._given: LRUCache[bytes, _Reading] = LRUCache(MAX_NUM_CHARS, lambda r: r.num_chars)
        self._lock = Lock()

    def current(self) -> ChatRoles:
        """The parts for a request that gives the template nothing, as they are now.

        Returns:
            The same object for as long as the template writes the same.

        Raises:
            UnsupportedError: The template cannot be taken apart, or never writes the same twice.
        """
        with self._lock:
            source = getattr(self._tokenizer, "chat_template", None)
            if self._plain is None or self._can_change or source is not self._source:
                if self._plain is None or self._plain.signature != signature(self._render):
                    self._plain = self._read(self._render, self._plain)
                if source is not self._source:
                    self._source, self._can_change = source, can_change(source, self._tokenizer)
            return self._plain.roles

    def known(self, key: bytes) -> ChatRoles | None:
        """The parts as a request that gave the template the same has left them."""
        with self._lock:
            reading = self._given.get(key)
        return None if reading is None else reading.roles

    def read(self, key: bytes, render: Render) -> ChatRoles:
        """Reads the parts anew for a request.

        Args:
            key: Tells what the request gives the template.
            render: Renders messages as the request does.

        Raises:
            UnsupportedError: As `current`.
        """
        with self._lock:
            reading = self._read(render, self._given.get(key))
            if reading.num_chars <= MAX_NUM_CHARS:
                self._given[key] = reading
        return reading.roles

    def _read(self, render: Render, last: _Reading | None) -> _Reading:
        written = signature(render)
        # A clock may move on in between, but not twice.
        for _ in range(2):
            before = written
            try:
                roles = derive_roles(render, bos=self._bos, eos=self._eos)
            except UnsupportedError:
                if (written := signature(render)) == before:
                    raise
                continue
            if (written := signature(render)) == before:
                return _changed(last, _Reading(written, roles))
        raise _restless()


def _changed(last: _Reading | None, now: _Reading) -> _Reading:
    if last is None:
        return now
    now.changes.extend(last.changes)
    if now.roles != last.roles:
        time = monotonic()
        if len(now.changes) == MAX_NUM_CHANGES and time - now.changes[0] < PERIOD_S:
            raise _restless()
        now.changes.append(time)
    return now


def _restless() -> UnsupportedError:
    return UnsupportedError(
        "the model's chat template cannot be used for roles: what it writes around messages is "
        "another text every few seconds, so that no module behind it can be reused",
        "use a chat template without random text and without seconds",
    )
