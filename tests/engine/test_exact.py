"""Exact prompts, and prompts of one scaffold, through a real engine: as a plain prefill.

Without pytest, with other numbers:

    python -m tests.engine.test_exact --prompts 400 --seed 7
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from tests.environment import prepare_environment

prepare_environment()

from vllm import RequestOutput  # noqa: E402  (vLLM reads its environment when imported)

from tests.engine.harness import (  # noqa: E402
    greedy,
    modules_only,
    running_engine,
)
from tests.generators import FIXED_SCHEMAS, CaseMaker  # noqa: E402
from vllm_promptcache import LLM  # noqa: E402
from vllm_promptcache.errors import ClientError  # noqa: E402
from vllm_promptcache.layout.primer import PRIMER_NAME  # noqa: E402

NUM_PROMPTS = 24
BATCH_SIZE = 8
# Two tokens whose log-probabilities differ by less, in nats, are tied: rounding decides.
TIE = 2e-4


@dataclass(frozen=True, slots=True)
class Equality:
    """How many of some outputs equal those of a plain prefill."""

    num_equal: int
    num_tied: int
    other: tuple[str, ...]

    def __str__(self) -> str:
        num_prompts = self.num_equal + self.num_tied + len(self.other)
        tied = f", {self.num_tied} up to a tie" if self.num_tied else ""
        return f"{self.num_equal} of {num_prompts} equal{tied}"


@pytest.fixture(scope="module")
def llm(shallow: Path) -> Iterator[LLM]:
    with running_engine(shallow, block_size=32, kv_cache_memory_bytes=640 << 20) as llm:
        yield llm


def test_exact_prompts_equal_a_plain_prefill(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    equality = compare(llm, exact_prompts(llm, seed=1, num_prompts=NUM_PROMPTS))
    with capsys.disabled():
        print(f"\nexact: {equality}")
    assert not equality.other


def test_prompts_of_one_scaffold_equal_a_plain_prefill(
    llm: LLM, capsys: pytest.CaptureFixture[str]
) -> None:
    equality = compare(llm, scaffold_prompts(llm, seed=2, num_prompts=NUM_PROMPTS))
    with capsys.disabled():
        print(f"\none scaffold: {equality}")
    assert not equality.other


def exact_prompts(llm: LLM, *, seed: int, num_prompts: int) -> list[str]:
    """Random prompts with `encode="exact"` that reuse something."""
    maker = CaseMaker(seed, lambda pml: explain(llm, pml), ClientError)
    schemas = [*FIXED_SCHEMAS, *(maker.schema(f"exact-{n}", llm.add_schema) for n in range(8))]
    for schema in FIXED_SCHEMAS:
        llm.add_schema(schema.pml)
    prompts: list[str] = []
    for schema in cycle(schemas):
        pml = with_policy(maker.prompt(schema).pml, 'encode="exact"')
        if reuses(explain(llm, pml), "exact"):
            prompts.append(pml)
        if len(prompts) == num_prompts:
            return prompts
    raise AssertionError("cycles never end")


def scaffold_prompts(llm: LLM, *, seed: int, num_prompts: int) -> list[str]:
    """Random prompts whose modules are made a scaffold of their schema."""
    maker = CaseMaker(seed, lambda pml: explain(llm, pml), ClientError)
    prompts: list[str] = []
    for number in range(100 * num_prompts):
        schema = maker.schema(f"scaffold-{number}", llm.add_schema)
        pml = with_policy(maker.prompt(schema).pml, "")
        modules = explain(llm, pml)["modules"]
        names = {m["path"] for m in modules if not m["path"].endswith(PRIMER_NAME)}
        # A scaffold has modules of the schema only.
        paths = sorted(name for name in names if name and not name.startswith("#"))
        if len(paths) < 2 or "<scaffold" in schema.pml or 'encode="exact"' in schema.pml:
            continue
        scaffold = f'<scaffold modules="{" ".join(paths)}"/>'
        llm.add_schema(schema.pml.replace("</schema>", f"{scaffold}</schema>"))
        if reuses(explain(llm, pml), "exact"):
            prompts.append(pml)
        if len(prompts) == num_prompts:
            return prompts
    raise AssertionError("too few random prompts import two modules")


def with_policy(pml: str, attribute: str) -> str:
    """A prompt with another policy."""
    schema = pml.split('"')[1]
    rest = pml[pml.index(">") :]
    return f'<prompt schema="{schema}" {attribute}{rest}'


def explain(llm: LLM, pml: str) -> dict[str, Any]:
    return llm.explain(pml).to_dict()


def reuses(explanation: dict[str, Any], policy: str) -> bool:
    """Whether a prompt reuses modules, all by this policy."""
    policies = {module["policy"] for module in explanation["modules"] if any(module["reused"])}
    return policies == {policy}


def compare(llm: LLM, prompts: Sequence[str]) -> Equality:
    """Runs prompts with modules, cold and warm, and as plain prefills."""
    num_equal, num_tied, other = 0, 0, []
    for start in range(0, len(prompts), BATCH_SIZE):
        batch = list(prompts[start : start + BATCH_SIZE])
        cold, warm, plain = (
            llm.generate(batch, modules_only(greedy(2)), reuse=reuse, use_tqdm=False)
            for reuse in (True, True, False)
        )
        for prompt, *outputs, expected in zip(batch, cold, warm, plain, strict=True):
            if all(tokens(output) == tokens(expected) for output in outputs):
                num_equal += 1
            elif all(differs_by_a_tie(output, expected) for output in outputs):
                num_tied += 1
            else:
                other.append(prompt)
    return Equality(num_equal, num_tied, tuple(other))


def tokens(output: RequestOutput) -> list[int]:
    return list(output.outputs[0].token_ids)


def differs_by_a_tie(output: RequestOutput, expected: RequestOutput) -> bool:
    """Whether the first token that differs is as good as the expected one."""
    ours, theirs = tokens(output), tokens(expected)
    if ours == theirs:
        return True
    step = next(i for i, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1])
    logprobs = expected.outputs[0].logprobs[step]
    if ours[step] not in logprobs:
        return False
    return logprobs[theirs[step]].logprob - logprobs[ours[step]].logprob <= TIE


def main() -> None:
    """Runs the comparison with the numbers of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=200, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    from vllm_promptcache.models import embedded_model

    options = {"block_size": 32, "kv_cache_memory_bytes": 640 << 20}
    with running_engine(Path(embedded_model()), **options) as llm:
        for name, make in (("exact", exact_prompts), ("one scaffold", scaffold_prompts)):
            equality = compare(llm, make(llm, seed=args.seed, num_prompts=args.prompts))
            print(f"{name}: {equality}")
            for prompt in equality.other:
                print(f"  other: {prompt}")


if __name__ == "__main__":
    main()
