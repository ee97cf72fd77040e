"""Many clients on a cache that holds little more than one of their prompts: nothing is lost.

    python -m tests.engine.thrash --requests 1000

Prints a line for each configuration. Answers are compared with those of the same prompts alone, in
a cache with room for all modules; waits with those of plain vLLM, with the same tokens in a cache
of the same size.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from tests.environment import prepare_environment

prepare_environment()

import vllm  # noqa: E402  (it reads its environment when imported)
from vllm import RequestOutput  # noqa: E402

from tests.engine.harness import (  # noqa: E402
    ENGINE_ARGS,
    greedy,
    running_engine,
    scheduler_of,
)
from tests.families import LLAMA  # noqa: E402
from tests.generators import random_text  # noqa: E402
from tests.reference.compare import TOLERANCE  # noqa: E402
from vllm_promptcache import LLM  # noqa: E402
from vllm_promptcache.errors import PlanError  # noqa: E402
from vllm_promptcache.quality.evaluate.engine import shut_down  # noqa: E402

NUM_REQUESTS = 1_000
NUM_CLIENTS = 32
NUM_MODULES = 30
NUM_UNIONS = 4
NUM_PRIORITIES = 4
MAX_MODEL_LEN = 768
BLOCK_SIZE = 32
SIZES = (1.2, 1.5, 2.0)
# Room for a third of the modules.
HOST_BYTES = 2 << 20
STEPS_BETWEEN_CHECKS = 20
# More steps without an answer than any request needs: behind it all are stuck.
MAX_IDLE_STEPS = 2_000
ARGS: dict[str, Any] = {
    "block_size": BLOCK_SIZE,
    "max_model_len": MAX_MODEL_LEN,
    "max_num_seqs": NUM_CLIENTS,
    "kv_cache_memory_bytes": 64 << 20,
    "max_num_batched_tokens": 256,
}

# Tokens of an answer, and their log-probabilities.
Answer = tuple[tuple[int, ...], tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class Ask:
    """What a client asks.

    Attributes:
        pml: A prompt of 2 to 4 modules.
        token_ids: The same for an engine without modules, in the order of reading.
        num_tokens: Length of the answer.
        priority: For a queue by priority.
    """

    pml: str
    token_ids: list[int]
    num_tokens: int
    priority: int


@dataclass(slots=True)
class Tally:
    """What became of some requests.

    Attributes:
        answers: Answers by number of the request; a lost one has none.
        waits_s: Seconds to the first token, of all that have one.
        reasons: Why requests were lost.
        num_checks: How often the engine's books were checked.
    """

    answers: dict[int, Answer] = field(default_factory=dict)
    waits_s: list[float] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    num_checks: int = 0

    def add(self, number: int, output: RequestOutput) -> None:
        """Takes note of a finished request."""
        completion = output.outputs[0]
        if completion.finish_reason != "length":
            self.reasons.append(f"{completion.finish_reason}: {completion.stop_reason}")
            return
        self.waits_s.append(output.metrics.first_token_latency)
        token_ids = tuple(completion.token_ids)
        steps = zip(completion.logprobs, token_ids, strict=True)
        self.answers[number] = token_ids, tuple(step[t].logprob for step, t in steps)

    def num_different(self, expected: Sequence[Answer]) -> int:
        """Answers that differ from the expected ones by more than rounding."""
        return sum(_differ(answer, expected[number]) for number, answer in self.answers.items())


def _differ(one: Answer, other: Answer) -> bool:
    pairs = zip(one[1], other[1], strict=True)
    return one[0] != other[0] or any(abs(a - b) > TOLERANCE for a, b in pairs)


def schemas() -> list[str]:
    """The same modules at fixed places, of which a prompt imports one of each union, and moved."""
    rng = Random(0)
    texts = [random_text(rng, rng.randint(20, 150)) for _ in range(NUM_MODULES)]
    modules = [f'<module name="m{number}">{text}</module>' for number, text in enumerate(texts)]
    unions = (f"<union>{''.join(modules[n::NUM_UNIONS])}</union>" for n in range(NUM_UNIONS))
    return [
        f'<schema name="fixed">{"".join(unions)}</schema>',
        f'<schema name="moved" layout="compact">{"".join(modules)}</schema>',
    ]


def _make_pml(rng: Random) -> str:
    num_modules = rng.randint(2, 4)
    if rng.random() < 0.5:
        numbers, name = rng.sample(range(NUM_MODULES), num_modules), "moved"
    else:
        unions = sorted(rng.sample(range(NUM_UNIONS), num_modules))
        numbers = [rng.choice(range(n, NUM_MODULES, NUM_UNIONS)) for n in unions]
        name = "fixed"
    imports = "".join(f"<m{number}/>" for number in numbers)
    return f'<prompt schema="{name}">{imports} {random_text(rng, rng.randint(3, 40))}</prompt>'


def make_asks(llm: LLM, num_requests: int) -> tuple[list[Ask], int]:
    """Random requests that fit the smallest cache, and how many others were refused."""
    config, rng = llm.front_end.vllm_config.cache_config, Random(1)
    num_blocks, num_refused, asks = config.num_gpu_blocks, 0, list[Ask]()
    config.num_gpu_blocks = num_blocks_of(min(SIZES))
    while len(asks) < num_requests:
        pml = _make_pml(rng)
        try:
            plan = llm.front_end.plan(pml)
        except PlanError:
            num_refused += 1
            continue
        token_ids = llm.front_end.baseline(plan).prompt_token_ids
        asks.append(Ask(pml, token_ids, rng.choice((1, 4, 16)), rng.randrange(NUM_PRIORITIES)))
    config.num_gpu_blocks = num_blocks
    return asks, num_refused


def num_blocks_of(size: float) -> int:
    """Blocks of a cache that is so many times as large as the longest prompt."""
    return int(size * MAX_MODEL_LEN) // BLOCK_SIZE + 1  # one is vLLM's null block


def at_once(
    llm: vllm.LLM,
    asks: Sequence[Ask],
    *,
    prompt: Callable[[Ask], Any],
    num_clients: int = NUM_CLIENTS,
    has_priorities: bool = False,
    check: Callable[[], None] = lambda: None,
) -> Tally:
    """Lets clients send the requests, each its next one when it has got an answer."""
    tally, coming, live = Tally(), iter(enumerate(asks)), dict[str, int]()

    def send() -> None:
        for number, ask in coming:
            options = {"priority": [ask.priority]} if has_priorities else {}
            params = greedy(0, max_tokens=ask.num_tokens)
            (internal_id,) = llm.enqueue(prompt(ask), params, use_tqdm=False, **options)
            live[internal_id.rsplit("-", 1)[0]] = number
            return

    for _ in range(num_clients):
        send()
    step = num_idle = 0
    while live and num_idle < MAX_IDLE_STEPS:
        outputs = llm.llm_engine.step()
        num_idle = 0 if outputs else num_idle + 1
        for output in outputs:
            tally.add(live.pop(output.request_id), output)
            send()
        step += 1
        if step % STEPS_BETWEEN_CHECKS == 0:
            check()
            tally.num_checks += 1
    tally.reasons += ["stuck"] * len(live)
    return tally


@contextmanager
def plain_engine(model: Path, **engine_args: Any) -> Iterator[vllm.LLM]:
    """Starts plain vLLM, and takes it down again."""
    llm = vllm.LLM(str(model), **(ENGINE_ARGS | ARGS | engine_args))
    try:
        yield llm
    finally:
        shut_down(llm)


def expected_answers(model: Path, num_requests: int) -> tuple[list[Ask], list[Answer], int]:
    """Requests, the answer to each alone, and how many the smallest cache has refused."""
    with running_engine(model, **ARGS) as llm:
        for schema in schemas():
            llm.add_schema(schema)
        asks, num_refused = make_asks(llm, num_requests)
        alone = at_once(llm, asks, prompt=lambda ask: ask.pml, num_clients=1)
        assert not alone.reasons, alone.reasons
        return asks, [alone.answers[number] for number in range(len(asks))], num_refused


def run(model: Path, asks: Sequence[Ask], size: float, policy: str, host_bytes: int) -> Tally:
    """The requests in a small cache."""
    options = {"host_memory": host_bytes / 2**30} if host_bytes else {}
    small = {"num_gpu_blocks_override": num_blocks_of(size), "scheduling_policy": policy}
    with running_engine(model, prompt_modules=options, **ARGS | small) as llm:
        for schema in schemas():
            llm.add_schema(schema)
        return at_once(
            llm,
            asks,
            prompt=lambda ask: ask.pml,
            has_priorities=policy == "priority",
            check=scheduler_of(llm).check_integrity,
        )


def run_plain(model: Path, asks: Sequence[Ask], size: float, policy: str) -> Tally:
    """The same tokens in plain vLLM."""
    small = {"num_gpu_blocks_override": num_blocks_of(size), "scheduling_policy": policy}
    with plain_engine(model, **small) as llm:
        return at_once(
            llm,
            asks,
            prompt=lambda ask: {"prompt_token_ids": ask.token_ids},
            has_priorities=policy == "priority",
        )


def main() -> None:
    """Runs all configurations, or those with some sizes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=NUM_REQUESTS)
    parser.add_argument("--sizes", type=float, nargs="+", default=SIZES)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = LLAMA.save(Path(folder))
        asks, expected, num_refused = expected_answers(model, args.requests)
        print(f"{num_refused} prompts refused by the smallest cache, {len(asks)} sent", flush=True)
        for size, policy in product(args.sizes, ("fcfs", "priority")):
            plain = run_plain(model, asks, size, policy)
            for host_bytes in (0, HOST_BYTES):
                tally = run(model, asks, size, policy, host_bytes)
                print(_line(size, policy, host_bytes, tally, expected, plain), flush=True)


def _line(
    size: float,
    policy: str,
    host_bytes: int,
    tally: Tally,
    expected: Sequence[Answer],
    plain: Tally,
) -> str:
    host = "with host memory" if host_bytes else "no host memory"
    waits, plain_waits = tally.waits_s, plain.waits_s
    return (
        f"{size} x max_model_len, {policy}, {host}: {len(expected)} requests, "
        f"{len(tally.reasons)} lost{tally.reasons[:1] or ''}, "
        f"{tally.num_different(expected)} other answers, first token after "
        f"{median(waits):.2f} s (median) to {max(waits):.2f} s (longest); plain vLLM "
        f"{median(plain_waits):.2f} to {max(plain_waits):.2f} s, {len(plain.reasons)} lost; "
        f"{tally.num_checks} integrity checks"
    )


if __name__ == "__main__":
    main()
