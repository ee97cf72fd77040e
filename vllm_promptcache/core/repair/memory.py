"""What was repaired in earlier prompts, so that the turns of a conversation go on with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256

import msgspec
import numpy as np
import numpy.typing as npt
from cachetools import LRUCache

from vllm_promptcache.core.repair.attended import Chosen
from vllm_promptcache.core.request import ModularRequest

MAX_BYTES = 16 << 20
"""What is remembered may take; what was not used longest is forgotten."""

MAX_NUM_PROMPTS = 16
"""Prompts of each combination of modules, which are looked through one after the other."""

_ENTRY_BYTES = 512
"""Of an entry beside its arrays, about."""


@dataclass(slots=True)
class _Prompts:
    """Prompts of one combination of modules, the oldest first.

    Attributes:
        chosen: Which cached tokens were repaired, a bit each, by the bytes of the text's tokens.
    """

    chosen: dict[bytes, npt.NDArray[np.uint8]] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Memory that they take."""
        parts = ((len(text), bits.nbytes) for text, bits in self.chosen.items())
        return _ENTRY_BYTES + sum(_ENTRY_BYTES + text + bits for text, bits in parts)

    def add(self, text: bytes, bits: npt.NDArray[np.uint8]) -> None:
        """Takes note of a prompt; the oldest ones leave for it."""
        self.chosen.pop(text, None)
        self.chosen[text] = bits
        while len(self.chosen) > 1 and (
            len(self.chosen) > MAX_NUM_PROMPTS or self.num_bytes > MAX_BYTES
        ):
            del self.chosen[next(iter(self.chosen))]


@dataclass(slots=True)
class RepairMemory:
    """Repaired tokens by the modules and the text of a prompt.

    The next turn of a conversation begins with the prompt of the last one. With the same tokens
    repaired it needs no probe, and it finds what that prompt has behind its modules.
    """

    _by_modules: LRUCache[bytes, _Prompts] = field(
        default_factory=lambda: LRUCache(MAX_BYTES, lambda prompts: prompts.num_bytes)
    )

    @property
    def num_bytes(self) -> int:
        """Memory that it takes, about."""
        return int(self._by_modules.currsize)

    def find(self, modular: ModularRequest) -> Chosen | None:
        """What was repaired in the longest prompt that this one begins with; None without any."""
        if (prompts := self._by_modules.get(_modules(modular))) is None:
            return None
        text = _text(modular)
        known = [begin for begin in prompts.chosen if text.startswith(begin)]
        if not known:
            return None
        num_cached = modular.table.num_cached_tokens
        bits = prompts.chosen[max(known, key=len)]
        return np.unpackbits(bits, count=num_cached).astype(np.bool_)

    def add(self, modular: ModularRequest, chosen: Chosen) -> None:
        """Takes note of what is repaired in a prompt that is as its plan has it."""
        modules = _modules(modular)
        prompts = self._by_modules.pop(modules, None) or _Prompts()
        prompts.add(_text(modular), np.packbits(chosen))
        if prompts.num_bytes <= self._by_modules.maxsize:
            self._by_modules[modules] = prompts


def _modules(modular: ModularRequest) -> bytes:
    spans = [(key, span.runs) for span, key in modular.span_keys()]
    # Tenants choose their salts: what one has asked must not show in what another one is told.
    parts = modular.request.cache_salt, modular.attended, spans
    return sha256(msgspec.msgpack.encode(parts)).digest()


def _text(modular: ModularRequest) -> bytes:
    token_ids = (modular.request.prompt_token_ids or ())[modular.table.num_cached_tokens :]
    return np.array(token_ids, dtype=np.int32).tobytes()
