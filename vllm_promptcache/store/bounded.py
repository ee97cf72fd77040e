"""Dicts that must not grow without bound."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


def forget_oldest(ordered: dict[K, V], max_num: int) -> None:
    """Takes out the entries that were put in first until `max_num` are left; mutates `ordered`."""
    for key in list(islice(ordered, max(0, len(ordered) - max_num))):
        del ordered[key]


def forget_oldest_of_size(ordered: dict[K, V], max_size: int, size_of: Callable[[V], int]) -> None:
    """Takes out the entries that were put in first until the others' sizes sum up to `max_size`.

    Mutates `ordered`.
    """
    total = sum(map(size_of, ordered.values()))
    for key in list(ordered):
        if total <= max_size:
            return
        total -= size_of(ordered.pop(key))
