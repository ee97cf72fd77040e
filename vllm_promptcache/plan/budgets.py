"""What one prompt may ask of the planner and the engine, in units of its plan.

Anyone may send a prompt, and others wait for the same planner and the same engine.
"""

from __future__ import annotations

from dataclasses import dataclass

# An engine with fewer rows takes these in several steps.
_MIN_ROWS = 256
# Token ids of modules, of what they are encoded behind, and of the prompt as it is once promoted.
_BYTES_A_POSITION = 16


@dataclass(frozen=True, slots=True)
class Budgets:
    """Limits of a plan.

    Attributes:
        max_rows: Rows of attention that it takes: one for new tokens behind all modules, one for
            each group of new tokens (text, arguments, repaired tokens) that modules lie behind.
        max_imports: Imports that are spelled out.
        max_texts: Pieces of new text that imports stand behind.
        max_bytes: Size of the plan as it travels to the engine; None for as many as a prompt of
            `max_model_len` positions may need.
    """

    max_rows: int = 1_024
    max_imports: int = 2_048
    max_texts: int = 1_024
    max_bytes: int | None = None

    @classmethod
    def of_engine(cls, max_num_seqs: int) -> Budgets:
        """Those for an engine that takes so many rows in a step."""
        return cls(max_rows=max(max_num_seqs, _MIN_ROWS))

    def bytes_for(self, max_model_len: int) -> int:
        """Size that a plan may have for a model with that many positions."""
        return self.max_bytes or 2**20 + _BYTES_A_POSITION * max_model_len


DEFAULT_BUDGETS = Budgets()
