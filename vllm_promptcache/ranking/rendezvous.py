"""Rendezvous hashing: where a schema goes that no replica holds.

Every process weighs the replicas alike, so routers agree without asking each other. A replica that
goes away moves its own schemas and no others.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

# The finalizer of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
# generators", OOPSLA 2014).
_MULTIPLIERS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_SHIFTS = np.uint64(30), np.uint64(27), np.uint64(31)


def digest(name: str) -> int:
    """64 bits of a name, the same in every process."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")


def weights(schema: int, replicas: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """How much each replica is preferred for a schema.

    Args:
        schema: Digest of the schema's name.
        replicas: Digests of the replicas' names, `[num_replicas]`.

    Returns:
        `[num_replicas]`; the highest comes first.
    """
    mixed = replicas ^ np.uint64(schema)
    mixed = (mixed ^ (mixed >> _SHIFTS[0])) * _MULTIPLIERS[0]
    mixed = (mixed ^ (mixed >> _SHIFTS[1])) * _MULTIPLIERS[1]
    return mixed ^ (mixed >> _SHIFTS[2])
