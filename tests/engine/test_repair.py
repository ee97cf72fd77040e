"""Repair by attention, through a real engine: what is chosen, what is computed, what is kept."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from tests.environment import prepare_environment, runs_on_v2

prepare_environment()

from vllm import RequestOutput  # noqa: E402
from vllm.sampling_params import StructuredOutputsParams  # noqa: E402

from tests.engine.agreement import (  # noqa: E402
    difference,
)
from tests.engine.explanations import (  # noqa: E402
    as_repaired,
)
from tests.engine.harness import (  # noqa: E402
    DETAIL,
    counted_tokens,
    greedy,
    idle,
    modules_only,
    noted_requests,
    running_engine,
    scheduler_of,
)
from tests.generators import random_text  # noqa: E402
from tests.reference import Reference  # noqa: E402
from tests.reference.compare import Tally  # noqa: E402
from vllm_promptcache import LLM  # noqa: E402
from vllm_promptcache.core.repair.attended import CHUNK_SIZE  # noqa: E402
from vllm_promptcache.core.request import NUM_OBSERVED_TOKENS  # noqa: E402
from vllm_promptcache.entrypoints.request_options import applied  # noqa: E402

BLOCK_SIZE = 32
TOLERANCE = 2e-4
SHARE = 20
DOCUMENTS = "".join(
    f"<module name='d{number}'>{random_text(Random(number), length)}</module> "
    for number, length in enumerate((90, 40, 130, 65))
)
SCHEMA = f"<schema name='s' repair='query:{SHARE}'>Read the documents. {DOCUMENTS} Behind.</schema>"
ARGUMENT = (
    f"<module name='t'>Dear <param name='who' len='8'/>, {random_text(Random(9), 50)}</module>"
)
WITH_ARGUMENT = f"<schema name='a' repair='query:{SHARE}'>Read. {DOCUMENTS} {ARGUMENT}</schema>"


@pytest.fixture(scope="module")
def reference(shallow: Path) -> Reference:
    return Reference(shallow)


@pytest.fixture(scope="module")
def llm(shallow: Path) -> Iterator[LLM]:
    with running_engine(
        shallow,
        block_size=BLOCK_SIZE,
        kv_cache_memory_bytes=640 << 20,
        prompt_modules={"verify": True},
    ) as llm:
        llm.add_schema(SCHEMA)
        llm.add_schema(WITH_ARGUMENT)
        yield llm


def prompt(text: str, imports: str = "<d0/><d1/><d2/><d3/>") -> str:
    return f"<prompt schema='s'>{imports} {text}</prompt>"


def ask(llm: LLM, pml: str, *, again: bool = False) -> RequestOutput:
    """Runs a prompt; `again` lets it find what earlier prompts have left behind their modules."""
    params = greedy(50)
    with applied(DETAIL):
        return llm.generate([pml], params if again else modules_only(params), use_tqdm=False)[0]


def repaired(llm: LLM, pml: str) -> tuple[RequestOutput, dict[str, Any], dict[str, Any]]:
    """The output, the plan, and the plan as it was repaired."""
    noted = noted_requests(llm)
    output = ask(llm, pml)
    (modular,) = (m for key, m in noted.items() if key.rsplit("-", 1)[0] == output.request_id)
    explanation = llm.explain(pml).to_dict()
    return output, explanation, as_repaired(explanation, modular)


@pytest.mark.skipif(runs_on_v2(), reason="Triton's interpreter cannot run vLLM's grammar kernel")
@pytest.mark.parametrize("again", [False, True])
def test_an_answer_keeps_to_its_grammar(llm: LLM, reference: Reference, again: bool) -> None:
    """The first pass of a prompt that is repaired draws a token too, which must not count."""
    pml = prompt("Which number is it?")
    noted = noted_requests(llm)
    digits = StructuredOutputsParams(regex="[0-9]{40}")
    params = greedy(50, structured_outputs=digits)
    chosen = params if again else modules_only(params)
    output, plain = llm.generate([pml, "Which number is it?"], chosen, use_tqdm=False)
    for answer in (output, plain):
        assert llm.get_tokenizer().decode(answer.outputs[0].token_ids).isdigit()
    (modular,) = (m for key, m in noted.items() if key.rsplit("-", 1)[0] == output.request_id)
    explanation = as_repaired(llm.explain(pml).to_dict(), modular)
    scored = reference.score(explanation, list(output.outputs[0].token_ids))
    for expected, step in zip(scored.logprobs, output.outputs[0].logprobs, strict=True):
        # Where the grammar's mask is applied first, what it leaves is a distribution of its own.
        found = {i: x.logprob for i, x in step.items() if math.isfinite(x.logprob)}
        ours, theirs = torch.tensor([*found.values()]), expected[[*found]]
        assert len(found) >= 10
        torch.testing.assert_close(
            ours.log_softmax(0), theirs.float().log_softmax(0), atol=TOLERANCE, rtol=0
        )


def chosen_of(plan: dict[str, Any], after: dict[str, Any]) -> torch.Tensor:
    """Which of the tokens that a plan reuses are computed again."""
    pairs = [
        is_reused
        for before, module in zip(plan["modules"], after["modules"], strict=True)
        for was_reused, is_reused in zip(before["reused"], module["reused"], strict=True)
        if was_reused
    ]
    return ~torch.tensor(pairs)


@pytest.mark.parametrize(
    "pml",
    [
        prompt("What do they say?"),
        prompt("And now?", "<d3/><d1/>"),
        "<prompt schema='a'><d0/><d2/><t who='you'/> Why?</prompt>",
    ],
)
def test_the_most_attended_tokens_are_computed_again(
    llm: LLM, reference: Reference, pml: str
) -> None:
    output, plan, after = repaired(llm, pml)
    # The argument is no token that sees all modules.
    num_observed = min(NUM_OBSERVED_TOKENS, len(plan["new"][-1]["token_ids"]))
    attention = reference.attention(plan, num_observed)
    chosen = chosen_of(plan, after)
    # The root and the first document have seen all that lies before them.
    first = min(plan["modules"][1:], key=lambda module: module["start"])["path"]
    sums: dict[bool, list[float]] = {True: [], False: []}
    at = 0
    for module in plan["modules"]:
        size = sum(module["reused"])
        for start in range(at, at + size, CHUNK_SIZE):
            chunk = slice(start, min(start + CHUNK_SIZE, at + size))
            (is_chosen,) = set(chosen[chunk].tolist())
            assert not is_chosen or module["path"] not in ("", first)
            if module["path"] not in ("", first):
                sums[is_chosen].append(attention[chunk].sum().item())
        at += size
    assert min(sums[True]) > max(sums[False]) - 1e-4
    assert chosen.sum() == pytest.approx(len(chosen) * SHARE / 100, abs=CHUNK_SIZE / 2 + 2)
    tally = Tally(TOLERANCE)
    tally.add(pml, difference(reference, output, after))
    assert not tally.wrong, tally
    scheduler_of(llm).check_integrity()


def test_the_next_turn_repairs_the_same_and_needs_no_probe(llm: LLM, reference: Reference) -> None:
    first = prompt("Which is the first one of all of them, and why is it so, do you know?")
    second = first.replace("</prompt>", " It is so. And the next one, which is longer?</prompt>")
    _, plan, after = repaired(llm, first)
    with counted_tokens(llm) as counts:
        found = ask(llm, first, again=True)
        turn = ask(llm, second, again=True)
    num_new = llm.explain(second).num_new_tokens
    # No step is a probe's, and what the first turn has computed is found.
    assert len([count for count in counts if count > 1]) == 2
    assert max(counts) < num_new
    assert turn.num_cached_tokens >= found.num_cached_tokens > after["num_cached_tokens"]
    explanation = llm.explain(second).to_dict()
    modules = zip(explanation["modules"], after["modules"], strict=True)
    both = explanation | {
        "modules": [module | {"reused": done["reused"]} for module, done in modules],
        "new": [*explanation["new"], *after["new"][len(plan["new"]) :]],
    }
    assert difference(reference, turn, both).largest < TOLERANCE


def test_prompts_in_a_batch_are_repaired_each_for_itself(llm: LLM, reference: Reference) -> None:
    questions = [random_text(Random(seed), 12) for seed in range(6)]
    prompts = [
        prompt(text, "<d1/><d2/><d3/>" if i % 2 else "<d0/><d3/>")
        for i, text in enumerate(questions)
    ]
    noted = noted_requests(llm)
    outputs = llm.generate(prompts, modules_only(greedy(50)), use_tqdm=False)
    requests = {key.rsplit("-", 1)[0]: modular for key, modular in noted.items()}
    tally = Tally(TOLERANCE)
    for pml, output in zip(prompts, outputs, strict=True):
        after = as_repaired(llm.explain(pml).to_dict(), requests[output.request_id])
        assert requests[output.request_id].account.span_numbers is not None
        tally.add(pml, difference(reference, output, after))
    assert not tally.wrong, tally


def test_a_request_that_is_aborted_takes_its_probe_along(llm: LLM) -> None:
    llm.reset_prefix_cache()
    (request_id,) = llm.enqueue(prompt("Never mind."), modules_only(greedy(5)), use_tqdm=False)
    llm.llm_engine.step()
    scheduler = scheduler_of(llm)
    assert any("probe" in other for other in scheduler.requests)
    llm.llm_engine.abort_request([request_id], internal=True)
    idle(llm)
    assert not scheduler.requests
    assert not scheduler.residency.requests
    scheduler.check_integrity()


def test_without_attention_a_prompt_is_served_as_it_is(
    llm: LLM, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm_promptcache.worker.attention_probe import AttentionProbe

    monkeypatch.setattr(AttentionProbe, "start", lambda self, observed: None)
    output, plan, after = repaired(llm, prompt("Is that so?"))
    assert after is plan
    assert difference(reference, output, plan).largest < TOLERANCE
