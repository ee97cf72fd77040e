"""The real scheduler on a cache for little more than one prompt: every request is served."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest
from vllm.v1.request import Request

from tests.families import LLAMA
from tests.generators import random_text
from vllm_promptcache.errors import PlanError
from vllm_promptcache.sequence.block_table import BlockTable
from vllm_promptcache.store import PinnedModule

from .scheduling import BLOCK_SIZE, Crowd, start

NUM_MODULES = 30
NUM_UNIONS = 4
NUM_REQUESTS = 150
# 29 blocks and vLLM's null block: 1.2 times the longest prompt.
NUM_BLOCKS = 30
HOST_MEMORY = {"host_memory": (1 << 20) / 2**30}
AS_THEY_ARE = {"repair": "none", "promote_after": 0}
EVERYTHING = {"repair": "query:20", "promote_after": 1, "max_promoted_share": 0.5, "prefetch": True}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, logging_as_before: None) -> Path:
    return LLAMA.save(tmp_path_factory.mktemp("model"))


def schema(kind: str) -> str:
    """30 modules: fixed (one of each union), exact, nested in one another, or moved."""
    rng = Random(0)
    texts = [random_text(rng, rng.randint(20, 150)) for _ in range(NUM_MODULES)]
    modules = [f'<module name="m{number}">{text}</module>' for number, text in enumerate(texts)]
    if kind == "moved":
        return f'<schema name="s" layout="compact">{"".join(modules)}</schema>'
    unions = [f"<union>{''.join(modules[n::NUM_UNIONS])}</union>" for n in range(NUM_UNIONS)]
    if kind == "nested":
        outer = '<module name="outer">The outer one, which all the others are read behind.'
        return f'<schema name="s">{outer}{"".join(unions)}</module></schema>'
    encode = ' encode="exact"' if kind == "exact" else ""
    return f'<schema name="s"{encode}>{"".join(unions)}</schema>'


def make_pml(rng: Random, kind: str) -> str:
    if kind == "moved":
        numbers = rng.sample(range(NUM_MODULES), rng.randint(2, 4))
    else:
        unions = sorted(rng.sample(range(NUM_UNIONS), rng.randint(2, 4)))
        numbers = [rng.choice(range(n, NUM_MODULES, NUM_UNIONS)) for n in unions]
    imports = "".join(f"<m{number}/>" for number in numbers)
    return f'<prompt schema="s">{imports} {random_text(rng, rng.randint(3, 60))}</prompt>'


def crowd(
    model: Path,
    kind: str,
    *,
    modules: dict[str, Any] = AS_THEY_ARE,
    policy: str = "fcfs",
    max_tokens: tuple[int, ...] = (1, 4, 16),
    num_aborts: int = 0,
    num_batched_tokens: int = 2048,
    num_requests: int = NUM_REQUESTS,
) -> Crowd:
    """Clients with prompts of 2 to 4 modules, and some plain ones."""
    engine = start(
        model,
        NUM_BLOCKS,
        modules=modules,
        scheduling_policy=policy,
        max_num_batched_tokens=num_batched_tokens,
        max_num_seqs=32,
    )
    engine.front_end.add_schema(schema(kind))

    def send(rng: Random) -> Request:
        length, priority = rng.choice(max_tokens), rng.randrange(4)
        if rng.random() < 0.1:
            token_ids = [rng.randrange(300) for _ in range(rng.randint(5, 500))]
            return engine.add_plain(token_ids, min(length, 200), priority)
        while True:
            # Some need more than the cache has, with what their modules are encoded behind.
            with suppress(PlanError):
                return engine.add(make_pml(rng, kind), length, priority)

    return Crowd(engine, send, num_requests, num_aborts=num_aborts)


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
@pytest.mark.parametrize("kind", ["fixed", "moved", "nested", "exact"])
@pytest.mark.parametrize("modules", [AS_THEY_ARE, AS_THEY_ARE | HOST_MEMORY], ids=["", "host"])
def test_every_request_is_served(
    model: Path, kind: str, policy: str, modules: dict[str, Any]
) -> None:
    clients = crowd(model, kind, policy=policy, modules=modules)
    clients.run()
    assert clients.reasons == []
    assert clients.num_served == NUM_REQUESTS


@pytest.mark.parametrize("kind", ["fixed", "moved"])
def test_with_chunks_aborts_repair_and_promotion(model: Path, kind: str) -> None:
    options = EVERYTHING | HOST_MEMORY
    clients = crowd(model, kind, modules=options, num_aborts=5, num_batched_tokens=64)
    clients.run()
    assert clients.reasons == []
    assert clients.num_served + clients.num_aborted == NUM_REQUESTS


@pytest.mark.parametrize("kind", ["fixed", "moved", "nested", "exact"])
def test_where_prompts_compute_what_is_nowhere(model: Path, kind: str) -> None:
    options = EVERYTHING | HOST_MEMORY | {"cold": "plain", "encode_after": 3}
    clients = crowd(model, kind, modules=options, num_aborts=5, num_batched_tokens=256)
    clients.run()
    assert clients.reasons == []
    assert clients.num_served + clients.num_aborted == NUM_REQUESTS


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_what_may_outgrow_the_cache_is_served(model: Path, policy: str) -> None:
    """With answers and the tails of modules, prompts take more blocks than there are."""
    lengths = (1, 200, 400)
    clients = crowd(model, "fixed", policy=policy, max_tokens=lengths, num_requests=40)
    clients.run()
    assert clients.reasons == []
    assert clients.num_served == 40


def test_a_prompt_that_the_cache_cannot_encode_is_refused_with_the_numbers(model: Path) -> None:
    """Its modules would fit, but not beside the primer that the last of them is encoded behind."""
    engine = start(model, NUM_BLOCKS, modules=AS_THEY_ARE)
    engine.front_end.add_schema(schema("moved"))
    # Behind text, so that none stands first.
    pml = '<prompt schema="s">See <m0/><m1/><m2/><m3/>What?</prompt>'
    plan = engine.front_end.planner.plan(pml)
    table = BlockTable.of(plan.sequence, BLOCK_SIZE)
    assert table.num_blocks(plan.num_tokens + 1) < NUM_BLOCKS
    what = "KV cache blocks of 32 tokens while these are encoded, the cache has 29"
    with pytest.raises(PlanError, match=what):
        engine.front_end.plan(pml)
    # An engine that gets it all the same says so.
    engine.front_end.vllm_config.cache_config.num_gpu_blocks = None
    engine.add(pml, 1)
    (output,) = (o for _ in range(2) for o in engine.step()[0])
    assert what in output.stop_reason


def test_pins_starve_nobody(model: Path) -> None:
    clients = crowd(model, "fixed")
    front_end, pins = clients.engine.front_end, clients.engine.scheduler.residency.pins
    modules = front_end.planner.schemas.get("s").layout.modules[1:5]
    pins.replace("s", [PinnedModule(m.key, -(-m.num_kept_tokens // 32)) for m in modules[:2]])
    clients.run()
    assert clients.reasons == []
    assert clients.num_served == NUM_REQUESTS


def test_modules_are_not_encoded_again_and_again(model: Path) -> None:
    """Waiting requests do not evict each other's modules: about one encode for each import."""
    clients = crowd(model, "fixed")
    clients.run()
    assert clients.engine.scheduler.residency.encodes.num_started < 4 * NUM_REQUESTS
