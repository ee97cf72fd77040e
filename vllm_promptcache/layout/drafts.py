"""Modules while they are being laid out."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter

from vllm_promptcache.layout.module_layout import ParameterSlot, RoleMark
from vllm_promptcache.pml.ast import Pin
from vllm_promptcache.policies import Policy
from vllm_promptcache.sequence.runs import Run

_start = attrgetter("start")


@dataclass(slots=True)
class ModuleDraft:
    """A module that still grows; see `ModuleLayout` for attributes that are not listed.

    Attributes:
        children: Modules in its scope by name.
        runs: Position ids of `token_ids`, one run for each piece.
        kept_ids: Own tokens without placeholders.
        kept_runs: Indexes of `kept_ids` in `token_ids`, one run for each piece.
        kept_position_runs: Position ids of `kept_ids`, one run for each piece.
        kept_counts: Length of `kept_ids` before each piece and behind the last one.
    """

    index: int
    path: str
    parent: int | None
    union: int | None
    start: int
    policy: Policy
    cached: bool
    pin: Pin | None = None
    end: int = 0
    head_end: int | None = None
    num_reusable: int = 0
    last_descendant: int = 0
    parameters: dict[str, ParameterSlot] = field(default_factory=dict)
    children: dict[str, int] = field(default_factory=dict)
    token_ids: list[int] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    kept_ids: list[int] = field(default_factory=list)
    kept_runs: list[Run] = field(default_factory=list)
    kept_position_runs: list[Run] = field(default_factory=list)
    kept_counts: list[int] = field(default_factory=lambda: [0])
    role_marks: list[RoleMark] = field(default_factory=list)

    @property
    def head(self) -> int:
        """One past the last position before the first module nested in it."""
        return self.end if self.head_end is None else self.head_end

    def path_of(self, name: str) -> str:
        """Path of a module that is nested in it."""
        return f"{self.path}/{name}" if self.path else name

    def add_text(self, token_ids: Sequence[int], position: int) -> None:
        """Appends own tokens whose KV is kept."""
        self.kept_runs.append(Run(len(self.token_ids), len(token_ids)))
        self.kept_position_runs.append(Run(position, len(token_ids)))
        self.kept_ids.extend(token_ids)
        self.kept_counts.append(len(self.kept_ids))
        self.add_placeholders(token_ids, position)

    def add_placeholders(self, token_ids: Sequence[int], position: int) -> None:
        """Appends own tokens whose KV is dropped after the encode (paper, section 3.3)."""
        self.token_ids.extend(token_ids)
        self.runs.append(Run(position, len(token_ids)))

    def num_kept_within(self, num_tokens: int) -> int:
        """Kept tokens of the pieces that are in the first `num_tokens` as a whole."""
        return self.kept_counts[bisect_right(self.kept_counts, num_tokens) - 1]

    def num_kept_before(self, position: int) -> int:
        """Kept tokens before the start of a module nested in this one.

        Own text that starts just there is not before it: the nested module may be empty.
        """
        return self.kept_counts[bisect_left(self.kept_position_runs, position, key=_start)]
