"""Runs one prompt with and without its modules, and takes the time to the first token."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from vllm import RequestOutput

from vllm_promptcache import LLM, SamplingParams
from vllm_promptcache.plan import Explanation

NUM_RUNS = 3
ANSWER_LEN = 40
# So small a model repeats itself.
FREQUENCY_PENALTY = 0.6


@dataclass(frozen=True, slots=True)
class Measurement:
    """One prompt on a running engine.

    Attributes:
        title: What the prompt is about.
        pml: The prompt.
        explanation: What it reuses and what it computes.
        arguments: Arguments by `path:parameter`, as the model reads them.
        num_cached_tokens: Prompt tokens that the engine took from modules.
        num_computed_tokens: The others.
        first_use_s: Time to the first token when the prompt was run first.
        reuse_s: Times to the first token with all modules resident, `[NUM_RUNS]`.
        plain_s: The same with every token computed, `[NUM_RUNS]`.
        answer: Greedy answer with reuse.
        plain_answer: Greedy answer without.
    """

    title: str
    pml: str
    explanation: Explanation
    arguments: Mapping[str, str]
    num_cached_tokens: int
    num_computed_tokens: int
    first_use_s: float
    reuse_s: tuple[float, ...]
    plain_s: tuple[float, ...]
    answer: str
    plain_answer: str

    @property
    def ratio(self) -> float:
        """How many times longer the first token takes without reuse."""
        return median(self.plain_s) / median(self.reuse_s)


def measure(llm: LLM, title: str, pml: str) -> Measurement:
    """Runs a prompt: its first use, then by turns with and without reuse, then for its answers."""
    first_use_s = _first_token_s(llm, pml, reuse=True)
    # By turns: whatever else the machine does then slows both down.
    runs = [
        (_first_token_s(llm, pml, reuse=True), _first_token_s(llm, pml, reuse=False))
        for _ in range(NUM_RUNS)
    ]
    reuse_s, plain_s = zip(*runs, strict=True)
    output = _generate(llm, pml, reuse=True, max_tokens=ANSWER_LEN)
    explanation, num_cached_tokens = llm.explain(pml), output.num_cached_tokens or 0
    return Measurement(
        title=title,
        pml=pml,
        explanation=explanation,
        arguments=_arguments(llm, explanation),
        num_cached_tokens=num_cached_tokens,
        num_computed_tokens=len(output.prompt_token_ids or ()) - num_cached_tokens,
        first_use_s=first_use_s,
        reuse_s=reuse_s,
        plain_s=plain_s,
        answer=output.outputs[0].text,
        plain_answer=_generate(llm, pml, reuse=False, max_tokens=ANSWER_LEN).outputs[0].text,
    )


def _first_token_s(llm: LLM, pml: str, *, reuse: bool) -> float:
    """Seconds from the call to the first token, planning included."""
    start = time.perf_counter()
    _generate(llm, pml, reuse=reuse, max_tokens=1)
    return time.perf_counter() - start


def _generate(llm: LLM, pml: str, *, reuse: bool, max_tokens: int) -> RequestOutput:
    params = SamplingParams(
        temperature=0.0,
        frequency_penalty=FREQUENCY_PENALTY,
        max_tokens=max_tokens,
        # A run must not find what the same prompt's last one has left behind its modules.
        skip_reading_prefix_cache=True,
    )
    return llm.generate(pml, params, reuse=reuse, use_tqdm=False)[0]


def _arguments(llm: LLM, explanation: Explanation) -> dict[str, str]:
    tokenizer = llm.get_tokenizer()
    return {
        part.owner: tokenizer.decode(list(part.token_ids))
        for part in explanation.new
        if part.kind == "argument"
    }
