"""What idle modules cost plain prompts: hit rate of vLLM's prefix cache beside a schema.

    python -m benchmarks.plain_beside_modules

A schema's modules take half of the block pool and are never used again. Then plain prompts come,
one at a time: each has one of some prefixes, by Zipf's law, and an end of its own. The prefixes
alone take 90 % of the pool. Each setting is an engine of its own and gets the same prompts.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from benchmarks.engines import in_process, inspected_engine, scheduler_of
from benchmarks.workloads import words

BLOCK_SIZE = 32
NUM_BLOCKS = 200
NUM_PREFIXES = 30
PREFIX_LEN = 200
SUFFIX_LEN = 40
# Half of the pool, with four blocks a module.
NUM_MODULES = 24
NUM_WORDS = 118
NUM_QUARTERS = 4


@dataclass(frozen=True, slots=True)
class Setting:
    """What is in the pool before the plain prompts.

    Attributes:
        name: What the table calls it.
        has_modules: Whether the schema is there.
        is_pinned: Whether its modules are pinned.
        eviction: The engine's option.
    """

    name: str
    has_modules: bool = True
    is_pinned: bool = False
    eviction: str = "value"


SETTINGS = (
    Setting("no modules", has_modules=False),
    Setting("idle modules"),
    Setting("idle modules, lru", eviction="lru"),
    Setting("idle and pinned modules", is_pinned=True),
)


@dataclass(frozen=True, slots=True)
class Quarter:
    """A quarter of a run.

    Attributes:
        hit_rate: Cached tokens of its prompts, as a share of all.
        num_module_blocks: Blocks that hold modules at its end.
    """

    hit_rate: float
    num_module_blocks: int


def make_prompts(num_requests: int, exponent: float, vocab_size: int) -> Iterator[list[int]]:
    """Token ids of each prompt; always the same."""
    rng = Random(0)
    prefixes = [_tokens(rng, PREFIX_LEN, vocab_size) for _ in range(NUM_PREFIXES)]
    weights = [1 / rank**exponent for rank in range(1, NUM_PREFIXES + 1)]
    for prefix in rng.choices(prefixes, weights, k=num_requests):
        yield prefix + _tokens(rng, SUFFIX_LEN, vocab_size)


def _tokens(rng: Random, num_tokens: int, vocab_size: int) -> list[int]:
    return [rng.randrange(100, vocab_size) for _ in range(num_tokens)]


def make_schema() -> str:
    """Modules that take half of the pool."""
    rng = Random(1)
    texts = (words(rng, NUM_WORDS) for _ in range(NUM_MODULES))
    modules = "".join(f'<module name="m{i}">{text}</module>' for i, text in enumerate(texts))
    return f'<schema name="idle"><union>{modules}</union></schema>'


def run(model: str, setting: Setting, num_requests: int, exponent: float) -> list[Quarter]:
    """Runs all prompts in a setting; the first item is the pool before them."""
    llm = inspected_engine(
        model,
        max_model_len=1024,
        block_size=BLOCK_SIZE,
        kv_cache_memory_bytes=1 << 30,
        num_gpu_blocks_override=NUM_BLOCKS,
        prompt_modules={"eviction": setting.eviction},
    )
    if setting.has_modules:
        llm.add_schema(make_schema(), warm=True, pin=setting.is_pinned)
    vocab_size = llm.model_config.get_vocab_size()
    prompts = list(make_prompts(num_requests, exponent, vocab_size))
    size = num_requests // NUM_QUARTERS
    quarters = [prompts[start : start + size] for start in range(0, size * NUM_QUARTERS, size)]
    return [Quarter(0.0, num_module_blocks(llm)), *(ask(llm, quarter) for quarter in quarters)]


def ask(llm: Any, prompts: list[list[int]]) -> Quarter:
    """Runs prompts one after the other."""
    from vllm import SamplingParams

    params = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False)
    num_cached = 0
    for token_ids in prompts:
        (output,) = llm.generate({"prompt_token_ids": token_ids}, params, use_tqdm=False)
        num_cached += output.num_cached_tokens
    return Quarter(num_cached / sum(map(len, prompts)), num_module_blocks(llm))


def num_module_blocks(llm: Any) -> int:
    """Blocks that hold modules."""
    store = scheduler_of(llm).module_store
    return sum(len(module.blocks) for module in store.modules.values())


def show(results: dict[str, list[Quarter]]) -> None:
    """Prints the table."""
    from rich.console import Console
    from rich.table import Table

    names = [f"{number}/{NUM_QUARTERS}" for number in range(1, NUM_QUARTERS + 1)]
    table = Table("setting", *names, "all", "blocks of modules")
    table.title = "Hit rate of plain prompts, by quarter of the run"
    for setting, (before, *quarters) in results.items():
        rates = [f"{quarter.hit_rate:.1%}" for quarter in quarters]
        mean = sum(quarter.hit_rate for quarter in quarters) / len(quarters)
        blocks = " > ".join(str(quarter.num_module_blocks) for quarter in (before, *quarters))
        table.add_row(setting, *rates, f"{mean:.1%}", blocks)
    Console(width=100).print(table)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="the embedded model if left out")
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--exponent", type=float, default=1.0, help="of Zipf's law")
    args = parser.parse_args()
    if args.model is None:
        from vllm_promptcache.models import embedded_model

        args.model = str(embedded_model())
    show({s.name: in_process(run, args.model, s, args.requests, args.exponent) for s in SETTINGS})


if __name__ == "__main__":
    main()
