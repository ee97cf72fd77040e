"""Dicts that must not grow without bound."""

from __future__ import annotations

from itertools import islice
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


def forget_oldest(ordered: dict[K, V], max_num: int) -> None:
    """Takes out the entries that were put in first until `max_num` are left; mutates `ordered`."""
    for key in list(islice(ordered, max(0, len(ordered) - max_num))):
        del ordered[key]
