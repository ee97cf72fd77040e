"""Time to the first token: prompt modules beside plain vLLM, with and without a prefix-cache hit.

    python -m benchmarks.ttft [--model NAME_OR_PATH] [--runs N] [--parts modules plain]

Both engines run with the same options in processes of their own and are asked in turn. Prompt
modules get PML text, so the time of parsing and planning counts. Plain vLLM gets token ids, or text
as a client sends it, where it says so. "Modules" are read as they are; "repaired" is
`repair="query:15"`.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from benchmarks.engines import Answer, Engine, Spread, start
from benchmarks.workloads import Documents, words
from vllm_promptcache.layout import LayoutTokenizer, compile_schema
from vllm_promptcache.models import DEFAULT_MODEL, MODELS, embedded_model
from vllm_promptcache.pml import parse_schema

BLOCK_SIZE = 32
NUM_WARMUPS = 3
REPAIR = "query:15"
PLAIN = ((1, 1), (1, 64), (8, 64), (32, 64))
"""Plain prompts at once, and tokens that are generated of each."""


def interleaved(num_runs: int, *runs: Callable[[], Answer]) -> list[tuple[Answer, ...]]:
    """Runs everything in turn, `num_runs` times after some warm-ups."""
    rounds = [tuple(run() for run in runs) for _ in range(NUM_WARMUPS + num_runs)]
    return rounds[NUM_WARMUPS:]


def spreads(rounds: list[tuple[Answer, ...]]) -> list[Spread]:
    """The times of each run."""
    return [
        Spread(tuple(answer.seconds for answer in column)) for column in zip(*rounds, strict=True)
    ]


class TTFT:
    """The requests that are compared.

    Args:
        modular: Engine with prompt modules.
        plain: Plain vLLM.
        num_documents: Modules of a prompt.
        num_words: Words of a module.
    """

    def __init__(self, modular: Engine, plain: Engine, num_documents: int, num_words: int) -> None:
        self._rng = random.Random(0)
        self._modular, self._plain = modular, plain
        self._documents = Documents.random(self._rng, num_documents, num_words)
        modular.add_schema(self._documents.schema)
        # One that stands first is read as another variant, which its first use encodes.
        for first in range(num_documents):
            modular.generate(self._documents.prompt([first], self._question()))
        answer = modular.generate(self.prompt())
        self.num_cached_tokens, self.num_new_tokens = (
            answer.num_cached_tokens,
            answer.num_new_tokens,
        )
        num_hit = self.num_cached_tokens // BLOCK_SIZE * BLOCK_SIZE
        text = words(self._rng, 2 * self.num_cached_tokens)
        self._prefix = plain.encode(text)[:num_hit]
        self._prefix_text = _text_of(text, num_hit, plain.encode)

    def _order(self) -> list[int]:
        return self._rng.sample(range(len(self._documents.texts)), len(self._documents.texts))

    def _question(self) -> str:
        return words(self._rng, 11)

    def prompt(self, repair: str = "none") -> str:
        """A PML prompt with all modules in random order."""
        return self._documents.prompt(self._order(), self._question(), repair=repair)

    def reuse(self) -> Answer:
        """A warm request with modules."""
        return self._modular.generate(self.prompt())

    def repaired(self) -> Answer:
        """A warm request with modules of which 15 % are computed again."""
        return self._modular.generate(self.prompt(REPAIR))

    def hit(self) -> Answer:
        """Plain vLLM: as many tokens computed, the rest in its prefix cache."""
        token_ids = self._plain.encode(words(self._rng, 4 * self.num_new_tokens))
        return self._plain.generate(self._prefix + token_ids[: self.num_new_tokens])

    def hit_by_text(self) -> Answer:
        """The same, as a client sends it: the whole text is tokenized."""
        return self._plain.generate(f"{self._prefix_text} {words(self._rng, self.num_new_tokens)}")

    def miss(self) -> Answer:
        """Plain vLLM: the same documents, in an order that its prefix cache does not know."""
        text = self._documents.plain(self._order(), self._question())
        return self._plain.generate(self._plain.encode(text))

    def plain_prompts(self, engine: Engine, number: int, max_tokens: int) -> Callable[[], Answer]:
        """Plain prompts of 100 tokens that no cache knows, all at once."""

        def prompt() -> list[int]:
            return engine.encode(words(self._rng, 200))[:100]

        return lambda: engine.generate_together(
            [prompt() for _ in range(number)], max_tokens=max_tokens
        )


def _text_of(text: str, num_tokens: int, encode: Callable[[str], list[int]]) -> str:
    """The first words of a text that are about so many tokens, and no more."""
    found = text.split()
    while (num_more := len(encode(" ".join(found))) - num_tokens) > 0:
        del found[-num_more:]
    return " ".join(found)


def compile_seconds(model: str) -> tuple[float, float, int]:
    """Compiles a schema of 1,000 modules; seconds in all, of tokenisation, and its tokens."""
    from transformers import AutoTokenizer

    tokenizer = LayoutTokenizer(AutoTokenizer.from_pretrained(model))
    documents = Documents.random(random.Random(1), 1_000, 99)
    began = time.perf_counter()
    layout = compile_schema(parse_schema(documents.schema), tokenizer, max_model_len=None)
    total = time.perf_counter() - began
    began = time.perf_counter()
    tokenizer.encode([f"{text}." for text in documents.texts])
    return total, time.perf_counter() - began, layout.num_tokens


def report(console: Console, ttft: TTFT, modular: Engine, plain: Engine, num_runs: int) -> None:
    """Measures and prints a line for each request, the ratios below."""
    rounds = interleaved(num_runs, ttft.reuse, ttft.hit, ttft.hit_by_text)
    reuse, hit, by_text = spreads(rounds)
    _line(console, "prompt modules, shuffled", rounds[-1][0], reuse)
    _line(console, "plain vLLM, prefix-cache hit", rounds[-1][1], hit)
    _line(console, "the same, text in place of token ids", rounds[-1][2], by_text)
    console.print(f"  modules / hit: {reuse.over(hit):.3f}, by text {reuse.over(by_text):.3f}")
    plans = Spread(tuple(modular.plan_seconds(ttft.prompt()) for _ in range(10 * num_runs)))
    console.print(f"  of it, parsing and planning: {plans}")
    rounds = interleaved(num_runs, ttft.reuse, ttft.repaired, ttft.miss)
    reuse, repaired, miss = spreads(rounds)
    _line(console, "prompt modules, shuffled, repaired", rounds[-1][1], repaired)
    _line(console, "plain vLLM, shuffled", rounds[-1][2], miss)
    console.print(f"  plain, shuffled / modules: {miss.over(reuse):.1f}")
    console.print(f"  plain, shuffled / repaired: {miss.over(repaired):.1f}")


def report_plain(
    console: Console, ttft: TTFT, modular: Engine, plain: Engine, num_runs: int
) -> None:
    """The same for prompts without modules: what it costs that the flag is on."""
    for number, max_tokens in PLAIN:
        rounds = interleaved(
            num_runs,
            ttft.plain_prompts(modular, number, max_tokens),
            ttft.plain_prompts(plain, number, max_tokens),
        )
        on, off = spreads(rounds)
        name = f"{number} plain, {max_tokens} tokens out, flag"
        _line(console, f"{name} on", rounds[-1][0], on)
        _line(console, f"{name} off", rounds[-1][1], off)
        console.print(f"  on / off: {on.over(off):.3f}")


def _line(console: Console, name: str, answer: Answer, spread: Spread) -> None:
    tokens = f"{answer.num_cached_tokens:>6,} cached {answer.num_new_tokens:>6,} computed"
    console.print(f"{name:38}{tokens}  {spread}", highlight=False)


def main() -> None:
    """Runs the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=DEFAULT_MODEL, help="name of an embedded model, or path")
    parser.add_argument("--runs", type=int, default=15, help="measured runs of each (default: 15)")
    parser.add_argument(
        "--parts",
        nargs="+",
        default=["modules", "plain"],
        choices=["modules", "plain"],
        help="prompts with modules, plain ones (default: both)",
    )
    parser.add_argument("--documents", type=int, default=10, help="modules a prompt (default: 10)")
    parser.add_argument("--words", type=int, default=497, help="words a module (default: 497)")
    parser.add_argument("--kv-cache-gib", type=int, default=2, help="of each engine (default: 2)")
    args = parser.parse_args()
    console = Console(soft_wrap=True)
    model = str(embedded_model(args.model) if args.model in MODELS else Path(args.model))
    max_model_len = args.documents * (args.words + 24) + 512
    options = {
        "max_model_len": max_model_len,
        "block_size": BLOCK_SIZE,
        "kv_cache_memory_bytes": args.kv_cache_gib << 30,
        "max_num_batched_tokens": 4096,
    }
    with (
        start(model, modular=True, options=options) as modular,
        start(model, modular=False, options=options) as plain,
    ):
        ttft = TTFT(modular, plain, args.documents, args.words)
        if "modules" in args.parts:
            report(console, ttft, modular, plain, args.runs)
        if "plain" in args.parts:
            report_plain(console, ttft, modular, plain, args.runs)
    total, tokenise, num_tokens = compile_seconds(model)
    console.print(
        f"compiling 1,000 modules, {num_tokens:,} tokens: {total:.2f} s, "
        f"of which tokenisation {tokenise:.2f} s"
    )


if __name__ == "__main__":
    main()
