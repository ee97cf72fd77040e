"""Prompts that compute modules which are nowhere, against the reference and a plain prefill."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.environment import prepare_environment

prepare_environment()

from tests.engine.agreement import (  # noqa: E402  (vLLM reads its environment when imported)
    Agreement,
)
from tests.engine.harness import (  # noqa: E402
    DETAIL,
    greedy,
    idle,
    modules_only,
    running_engine,
    scheduler_of,
)
from tests.reference import Reference  # noqa: E402
from vllm_promptcache import LLM  # noqa: E402
from vllm_promptcache.entrypoints.request_options import applied  # noqa: E402

NUM_PROMPTS = 64
NUM_LOGPROBS = 50
TOLERANCE = 2e-4
SCHEMA = """<schema name="ferries" encode="isolated"><user>Read this.
  <module name="oban">The ferry to Arran leaves Oban at nine, every day but Sunday.</module>
  <module name="arran">On Arran there is a bakery that opens when the ferry comes.</module>
  Then answer.
</user></schema>"""


@pytest.fixture(scope="module")
def llm(shallow: Path) -> Iterator[LLM]:
    options = {"cold": "plain", "verify": True}
    with running_engine(
        shallow, block_size=32, kv_cache_memory_bytes=640 << 20, prompt_modules=options
    ) as llm:
        yield llm


def ask(llm: LLM, *, reuse: bool = True) -> tuple[list[int], set[str]]:
    """Greedy tokens of an answer, and what is told of its modules."""
    prompt = '<prompt schema="ferries"><arran/><oban/><user>When does it open?</user></prompt>'
    with applied(DETAIL):
        (output,) = llm.generate(prompt, modules_only(greedy(2)), reuse=reuse, use_tqdm=False)
    scheduler_of(llm).check_integrity()
    told = output.kv_transfer_params["prompt_modules"] if reuse else []
    return list(output.outputs[0].token_ids), {one["status"] for one in told}


def test_the_first_prompt_is_a_plain_prefill(llm: LLM) -> None:
    llm.add_schema(SCHEMA.replace("<schema ", '<schema layout="compact" '))
    plain, _ = ask(llm, reuse=False)
    assert ask(llm) == (plain, {"cold"})
    second, statuses = ask(llm)
    assert statuses == {"encoded"}
    assert ask(llm) == (second, {"hit"})


def test_an_idle_engine_encodes_what_a_prompt_computed(llm: LLM) -> None:
    llm.add_schema(SCHEMA.replace("Sunday", "Monday").replace("bakery", "market"))
    plain, _ = ask(llm, reuse=False)
    assert ask(llm) == (plain, {"cold"})
    idle(llm)
    served, statuses = ask(llm)
    assert statuses == {"hit"}
    assert ask(llm) == (served, {"hit"})


def test_prompts_agree_with_the_reference_whatever_they_compute(
    llm: LLM, shallow: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    agreement = Agreement(llm, Reference(shallow), NUM_LOGPROBS, TOLERANCE)
    with capsys.disabled():
        modular, plain = agreement.run(NUM_PROMPTS, seed=5, num_random_schemas=6)
    scheduler_of(llm).check_integrity()
    assert modular.num_outputs == NUM_PROMPTS
    assert not modular.wrong
    assert not plain.wrong
