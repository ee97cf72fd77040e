"""What a replica says of its modules."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

# A module is told by the first bytes of its key. Two with the same ones cost an encode, no answer.
SHORT_KEY_BYTES = 8
# 64 KiB a summary: as many modules of 200 tokens as lie in a KV cache of 1.6 million tokens.
MAX_NUM_MODULES = 8192


def short_key(key: bytes) -> int:
    """A module's key as summaries have it."""
    return int.from_bytes(key[:SHORT_KEY_BYTES], "little")


@dataclass(frozen=True, slots=True)
class Summary:
    """The modules that are resident at a replica.

    Attributes:
        packed_keys: The first 8 bytes of their keys, ascending as little-endian numbers.
        num_tokens: Tokens of all its modules, also of those that found no room in `packed_keys`.
    """

    packed_keys: bytes = b""
    num_tokens: int = 0

    @staticmethod
    def of(modules: Iterable[tuple[bytes, int]]) -> Summary:
        """Key and tokens of each module, those first that are worth most: 8,192 are named."""
        found = list(modules)
        keys = {short_key(key) for key, _ in islice(found, MAX_NUM_MODULES)}
        packed = np.sort(np.fromiter(keys, "<u8", len(keys)))
        return Summary(packed.tobytes(), sum(num_tokens for _, num_tokens in found))

    @property
    def short_keys(self) -> NDArray[np.uint64]:
        """The keys, ascending and each once."""
        return np.frombuffer(self.packed_keys, "<u8")
