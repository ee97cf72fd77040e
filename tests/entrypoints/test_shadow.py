"""The shadow check with an engine that answers from a table."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import REGISTRY
from vllm.engine.arg_utils import EngineArgs

from tests.plan.planning import Prompts
from vllm_promptcache.config import CONFIG_KEY
from vllm_promptcache.core.reports.schema_series import schema_series
from vllm_promptcache.engine import prepare_engine_args
from vllm_promptcache.entrypoints.engine_request import PLAN_FIELD, planned_prompt
from vllm_promptcache.entrypoints.front_end import FrontEnd
from vllm_promptcache.entrypoints.shadow import MAX_NUM_WAITING, ShadowCheck

PROMPTS = Prompts('<module name="a">a1 a2 a3 a4 a5</module>')
PLAN = PROMPTS.plan("<a/> end")
# First tokens by whether anything is reused.
SAME = {True: {1: 0.5, 2: 0.25}, False: {1: 0.5, 2: 0.25}}
OTHER = {True: {1: 0.25, 2: 0.5}, False: {1: 0.5, 2: 0.25}}


class Engine:
    """An engine client; an empty table makes its requests fail."""

    def __init__(self, table: dict[bool, dict[int, float]], num_blocks: int | None = None) -> None:
        self.table = table
        self.calls: list[tuple[Any, ...]] = []
        config: Any = SimpleNamespace(
            cache_config=SimpleNamespace(num_gpu_blocks=num_blocks, block_size=4)
        )
        self.shadow = ShadowCheck(FrontEnd(PROMPTS.planner, config), self.generate, 1.0)

    async def generate(
        self, prompt: Any, params: Any, request_id: str, **kwargs: Any
    ) -> AsyncGenerator[Any]:
        self.calls.append((prompt, params, request_id, kwargs))
        found = self.table[prompt[PLAN_FIELD].num_cached_tokens > 0]
        logprobs = {token: SimpleNamespace(logprob=math.log(p)) for token, p in found.items()}
        token = max(found, key=lambda token: found[token])
        yield SimpleNamespace(outputs=[SimpleNamespace(token_ids=[token], logprobs=[logprobs])])

    async def ask(self, prompt: Any, **kwargs: Any) -> None:
        """A client's request, without the work of the engine for it."""

        async def answer(*_: Any, **__: Any) -> AsyncGenerator[str]:
            yield "one"
            yield "two"

        outputs = self.shadow.watch(answer, prompt, None, "client", **kwargs)
        assert [output async for output in outputs] == ["one", "two"]

    async def settle(self) -> None:
        """Compares all that waits."""
        task = asyncio.create_task(self.shadow.run())
        for _ in range(200):
            await asyncio.sleep(0.001)
            if self.shadow._waiting.empty():
                break
        await asyncio.sleep(0.05)
        task.cancel()


class Counts:
    """How much metrics have grown."""

    NAMES = (
        "compared_total",
        "same_first_token_total",
        "divergence_nats_count",
        "divergence_nats_sum",
        "dropped_total",
        "failed_total",
    )

    def __init__(self) -> None:
        self._start = {name: self._value(name) for name in self.NAMES}

    def _value(self, name: str) -> float:
        labels = {} if name in ("dropped_total", "failed_total") else {"schema": "s"}
        return REGISTRY.get_sample_value(f"promptcache_shadow_{name}", labels) or 0.0

    def __getitem__(self, name: str) -> float:
        return self._value(name) - self._start[name]


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counts]:
    monkeypatch.setattr(schema_series, "_served", lambda: {"s"})
    return Counts()


def client_prompt(**fields: Any) -> Any:
    """A prompt as the renderer hands it to the engine client."""
    return planned_prompt("text", PLAN, since_ns=1) | fields


async def serve(engine: Engine, *prompts: Any, **kwargs: Any) -> None:
    for prompt in prompts:
        await engine.ask(prompt, **kwargs)
    await engine.settle()


def test_a_prompt_is_compared_with_its_plain_prefill(counts: Counts) -> None:
    engine = Engine(OTHER)
    kept = {"lora_request": "adapter", "data_parallel_rank": 1}
    asyncio.run(serve(engine, client_prompt(cache_salt="tenant"), **kept))
    (plain, plain_params, _, first), (reused, reused_params, _, second) = engine.calls
    assert reused[PLAN_FIELD] is PLAN
    assert plain[PLAN_FIELD].num_cached_tokens == 0
    assert sorted(plain["prompt_token_ids"]) == sorted(PLAN.prompt_token_ids)
    assert plain_params.skip_reading_prefix_cache
    assert reused_params.logprob_token_ids == [1, 2]
    for params in (plain_params, reused_params):
        assert (params.max_tokens, params.temperature) == (1, 0)
    for prompt in (plain, reused):
        assert prompt["cache_salt"] == "tenant"
    assert first == second
    assert kept.items() <= first.items()
    assert counts["compared_total"] == counts["divergence_nats_count"] == 1
    assert counts["same_first_token_total"] == 0
    assert counts["divergence_nats_sum"] == pytest.approx(0.25 * math.log(2))


def test_equal_first_tokens_are_counted(counts: Counts) -> None:
    asyncio.run(serve(Engine(SAME), client_prompt(), client_prompt()))
    assert counts["same_first_token_total"] == counts["compared_total"] == 2
    assert counts["divergence_nats_sum"] == 0


def test_what_fails_is_counted_and_the_next_one_is_compared(counts: Counts) -> None:
    async def run(engine: Engine) -> None:
        await serve(engine, client_prompt())
        engine.table = SAME
        await serve(engine, client_prompt())

    asyncio.run(run(Engine({})))
    assert (counts["failed_total"], counts["compared_total"]) == (1, 1)


def test_a_baseline_that_does_not_fit_is_not_run(counts: Counts) -> None:
    engine = Engine(SAME, num_blocks=2)
    asyncio.run(serve(engine, client_prompt()))
    assert engine.calls == []
    assert counts["failed_total"] == 1


def test_no_more_wait_than_the_queue_holds(counts: Counts) -> None:
    engine = Engine(SAME)
    asyncio.run(serve(engine, *[client_prompt()] * (MAX_NUM_WAITING + 3)))
    assert (counts["compared_total"], counts["dropped_total"]) == (MAX_NUM_WAITING, 3)


@pytest.mark.parametrize(
    "prompt",
    [
        {"prompt_token_ids": [1, 2]},
        "The sky is",
        planned_prompt("", PLAN),  # it warms a module
        planned_prompt("text", PROMPTS.plan("<a/> end", reuse=False), since_ns=1),
    ],
)
def test_only_prompts_of_clients_that_reuse_something_are_compared(prompt: Any) -> None:
    engine = Engine(SAME)
    asyncio.run(serve(engine, prompt))
    assert engine.calls == []


def test_a_request_that_was_not_finished_is_not_compared() -> None:
    async def run(engine: Engine) -> bool:
        closed = []

        async def answer(*_: Any, **__: Any) -> AsyncGenerator[int]:
            try:
                yield 1
                yield 2
            finally:
                closed.append(True)

        outputs = engine.shadow.watch(answer, client_prompt(), None, "client")
        await anext(outputs)
        await outputs.aclose()
        assert engine.shadow._waiting.empty()
        return closed == [True]

    assert asyncio.run(run(Engine(SAME)))


@pytest.mark.parametrize(
    ("shadow", "given", "expected"), [(0, 20, 20), (0.1, 20, 100), (0.1, 200, 200), (0.1, -1, -1)]
)
def test_the_engine_tells_as_many_log_probabilities_as_are_compared(
    shadow: float, given: int, expected: int
) -> None:
    options = {CONFIG_KEY: {"shadow": shadow}}
    args = EngineArgs(model=".", max_logprobs=given, additional_config=options)
    prepare_engine_args(args)
    assert args.max_logprobs == expected


def test_a_share_is_about_that_share() -> None:
    shadow = ShadowCheck(FrontEnd(PROMPTS.planner, SimpleNamespace()), Engine(SAME).generate, 0.25)  # type: ignore[arg-type]
    plain = object()
    watched = [shadow.watch(lambda *_: plain, client_prompt()) for _ in range(1000)]  # type: ignore[arg-type,return-value]
    assert 200 < sum(outputs is not plain for outputs in watched) < 300
