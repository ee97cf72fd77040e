"""How many rows of attention the requests of a step take together.

Attention backends make their buffers for as many rows as requests may run. A request whose new
tokens stand between those of modules takes several rows in a step, so it counts as several.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vllm.v1.request import Request

from vllm_promptcache.core.request import ModularRequest


class AttentionBudget:
    """Keeps the rows of each step within what the engine can take.

    A request waits where its rows do not fit beside those of the others. One that has more rows
    than there ever are takes them in several steps: a row has a token at least, so a step of few
    tokens has few rows, whoever they are of.

    Args:
        max_rows: Rows of a step at most: as many as requests may run.
        get: Returns the state of a request that reads modules.
        is_chunked: Whether a prefill may take several steps.
    """

    def __init__(
        self,
        max_rows: int,
        get: Callable[[Request], ModularRequest | None],
        *,
        is_chunked: bool,
    ) -> None:
        self._max_rows = max_rows
        self._get = get
        self._is_chunked = is_chunked
        # Admitted requests with more rows than one left, and such as were not.
        self._split: list[Request] = []
        self._num_rows = 0
        self._num_counted = 0
        self._is_narrow = False
        self._is_full = False
        self._wants_narrow = False

    @property
    def is_full(self) -> bool:
        """Whether the last step had no room for a request that was next."""
        return self._is_full

    def start_step(self, running: Sequence[Request]) -> int | None:
        """Returns how many tokens the step that begins may have, None for as many as usual.

        Args:
            running: Requests that run; `fits` was true for each when it was admitted.
        """
        self._split = [r for r in self._split if self._rows_of(r) > 1 and r in running]
        self._num_rows = len(running) + sum(self._rows_of(r) - 1 for r in self._split)
        self._num_counted = len(running)
        self._is_full = False
        is_narrow = self._wants_narrow or self._num_rows > self._max_rows
        self._is_narrow = is_narrow and self._is_chunked
        self._wants_narrow = False
        return self._max_rows if self._is_narrow else None

    def fits(self, request: Request, running: Sequence[Request]) -> bool:
        """Whether a request may be admitted in this step; if not, none behind it may.

        Args:
            request: The next one in the queue.
            running: Requests that run, those admitted in this step among them.
        """
        if self._is_full:
            return False
        self._num_rows += sum(map(self._rows_of, running[self._num_counted :]))
        self._num_counted = len(running)
        if (num_rows := self._rows_of(request)) > 1:
            self._split.append(request)
        # Not even when all others take a row each.
        self._wants_narrow |= len(running) + num_rows > self._max_rows
        self._is_full = not self._is_narrow and self._num_rows + num_rows > self._max_rows
        return not self._is_full

    def _rows_of(self, request: Request) -> int:
        """Rows that the rest of a request takes, all in one step."""
        modular = self._get(request)
        if modular is None or modular.table.inner is None:
            return 1
        return modular.table.inner.max_num_rows(request.num_computed_tokens)
