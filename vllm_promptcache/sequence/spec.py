"""All that is needed to encode a module."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_promptcache.sequence.runs import Run, count, locate
from vllm_promptcache.sequence.spans import Relocation, SequencePlan


@dataclass(frozen=True, slots=True)
class ModuleSpec:
    """A module as it is encoded (docs/how-it-works.md: "What one module is").

    Attributes:
        key: The module's key.
        sequence: The context it is encoded behind, and the positions of its own tokens.
        token_ids: Own tokens with placeholders, `[num_tokens]`.
        kept_runs: Indexes into `token_ids` of the tokens whose KV is kept (all but placeholders).
    """

    key: bytes
    sequence: SequencePlan
    token_ids: tuple[int, ...]
    kept_runs: tuple[Run, ...]

    @property
    def num_kept_tokens(self) -> int:
        """Tokens whose KV the module holds once it is encoded."""
        return count(self.kept_runs)

    @property
    def kept_position_runs(self) -> list[Run]:
        """Position ids of these tokens."""
        found = locate(self.sequence.position_runs, self.kept_runs)
        return [Run(start, run.num_tokens) for run, start in found]

    def relocated(self, relocation: Relocation) -> ModuleSpec:
        """The same module encoded at another place, alone: its context stays where it is."""
        runs = tuple(
            Run(run.start + relocation.shift, run.num_tokens) for run in self.sequence.position_runs
        )
        return ModuleSpec(relocation.key, SequencePlan((), runs), self.token_ids, self.kept_runs)
