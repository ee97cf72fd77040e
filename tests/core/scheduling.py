"""An engine without a model, and a crowd of clients for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from vllm.v1.request import Request

from benchmarks.modelless import ModellessEngine
from tests.families import build_tokenizer

BLOCK_SIZE = 32


def start(
    model: Path, num_blocks: int, *, modules: dict[str, Any], **engine_args: Any
) -> ModellessEngine:
    """Starts an engine with prompt modules for the tokenizer and the shape of a model."""
    tokenizer = build_tokenizer()
    return ModellessEngine.start(
        model, tokenizer, num_blocks, modules=modules, block_size=BLOCK_SIZE, **engine_args
    )


@dataclass(slots=True)
class Crowd:
    """Clients that send a new request as soon as they have got an answer.

    Attributes:
        engine: What they send them to.
        send: Adds a request with the numbers it is given; returns it.
        num_requests: Requests in all.
        num_clients: Requests at a time.
        num_aborts: How many of 100 steps abort a request.
        reasons: Why requests were not served.
        num_served: Requests that were answered.
        num_aborted: Requests that were aborted.
    """

    engine: ModellessEngine
    send: Callable[[Random], Request]
    num_requests: int
    num_clients: int = 32
    num_aborts: int = 0
    reasons: list[str] = field(default_factory=list)
    num_served: int = 0
    num_aborted: int = 0

    def run(self, max_idle_steps: int = 50, steps_between_checks: int = 10) -> None:
        """Lets all requests end.

        Raises:
            AssertionError: Nothing is computed for many steps, or the engine's books are wrong.
        """
        rng, live = Random(0), set[str]()
        coming = iter(range(self.num_requests))
        self._fill(rng, live, coming)
        num_idle = 0
        while live:
            ended, num_tokens = self.engine.step()
            num_idle = 0 if num_tokens else num_idle + 1
            assert num_idle < max_idle_steps, f"stuck: {sorted(live)}"
            for output in ended:
                live.discard(output.request_id)
                if str(output.finish_reason) == "length":
                    self.num_served += 1
                else:
                    self.reasons.append(str(output.stop_reason))
            if live and rng.randrange(100) < self.num_aborts:
                self._abort(rng.choice(sorted(live)), live)
            self._fill(rng, live, coming)
            if self.engine.num_steps % steps_between_checks == 0:
                self.engine.scheduler.check_integrity()

    def _fill(self, rng: Random, live: set[str], coming: Iterator[int]) -> None:
        while len(live) < self.num_clients and next(coming, None) is not None:
            live.add(self.send(rng).request_id)

    def _abort(self, request_id: str, live: set[str]) -> None:
        live.discard(request_id)
        self.engine.abort(request_id)
        self.num_aborted += 1
