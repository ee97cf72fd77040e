"""PML prompts through real engines, token by token against the reference.

Without pytest, with other numbers:

    python -m tests.engine.test_agreement --prompts 600 --block-sizes 32 96 --seed 7
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from tests.environment import prepare_environment

prepare_environment()

from tests.engine.agreement import (  # noqa: E402  (vLLM reads its environment when imported)
    Agreement,
    difference,
)
from tests.engine.explanations import (  # noqa: E402
    without_modules,
)
from tests.engine.harness import (  # noqa: E402
    counted_tokens,
    greedy,
    modules_only,
    running_engine,
)
from tests.engine.scored import rendered  # noqa: E402
from tests.families import LLAMA  # noqa: E402
from tests.generators import FIXED_SCHEMAS, CaseMaker, random_chat, random_text  # noqa: E402
from tests.reference import Reference  # noqa: E402
from tests.reference.compare import Tally  # noqa: E402
from vllm_promptcache import LLM  # noqa: E402
from vllm_promptcache.entrypoints.front_end import FrontEnd  # noqa: E402
from vllm_promptcache.entrypoints.request_options import RequestOptions, applied  # noqa: E402
from vllm_promptcache.errors import ClientError  # noqa: E402
from vllm_promptcache.plan import Explanation  # noqa: E402

# vLLM's CPU attention takes multiples of 32 only.
BLOCK_SIZES = (32, 64, 128)
NUM_PROMPTS = 204
# The same prompts to the whole model take minutes; to its first layers, seconds.
NUM_PROMPTS_WHOLE = 16
NUM_RANDOM_SCHEMAS = 6
NUM_CHATS = 12
# With half as many the shares below vary by as much as they may differ.
NUM_PROMPTS_BFLOAT16 = 96
NUM_LOGPROBS = 50
KV_CACHE_BYTES = 640 << 20
# Rounding of this model: on prompts of few tokens the reference's own log-probabilities in float32
# and in float64 are up to 1.8e-4 apart, and vLLM's without modules up to 1.2e-4; elsewhere 5e-5.
TOLERANCE = 2e-4


def start(model: Path, block_size: int, dtype: str = "float32"):
    return running_engine(
        model, dtype=dtype, block_size=block_size, kv_cache_memory_bytes=KV_CACHE_BYTES
    )


@pytest.fixture(scope="module")
def reference(shallow: Path) -> Reference:
    return Reference(shallow)


@pytest.fixture(scope="module", params=BLOCK_SIZES, ids=lambda size: f"block_size={size}")
def llm(request: pytest.FixtureRequest, shallow: Path) -> Iterator[LLM]:
    with start(shallow, request.param) as llm:
        yield llm


@pytest.fixture
def agreement(llm: LLM, reference: Reference) -> Agreement:
    return Agreement(llm, reference, NUM_LOGPROBS, TOLERANCE)


def test_prompts_agree(agreement: Agreement, capsys: pytest.CaptureFixture[str]) -> None:
    """Log-probabilities, greedy tokens and counts, cold and warm, beside plain prompts."""
    block_size = agreement.block_size
    num_prompts = NUM_PROMPTS // len(BLOCK_SIZES)
    modular, plain = agreement.run(
        num_prompts, seed=block_size, num_random_schemas=NUM_RANDOM_SCHEMAS
    )
    with capsys.disabled():
        print(f"\nblock size {block_size}: {modular}; plain prompts beside them: {plain}")
    assert modular.num_outputs == num_prompts
    assert not modular.wrong
    assert not plain.wrong
    assert modular.num_within(1e-4) > 0.95 * num_prompts


def test_warm_prompts_compute_only_new_tokens(agreement: Agreement) -> None:
    """Invariant 4, counted where the engine schedules tokens, not where it reports them."""
    llm = agreement.llm
    # What earlier tests have left would press on modules that were used once.
    assert llm.reset_prefix_cache()
    maker = CaseMaker(1, agreement.explain, ClientError)
    for schema in FIXED_SCHEMAS:
        llm.add_schema(schema.pml)
        cases = [maker.prompt(schema) for _ in range(4)]
        prompts = [case.pml for case in cases]
        once = modules_only(greedy(0, max_tokens=1))
        cold = llm.generate(prompts, once, use_tqdm=False)
        with counted_tokens(llm) as counts:
            warm = llm.generate(prompts, once, use_tqdm=False)
        assert sum(counts) == sum(case.explanation["num_new_tokens"] for case in cases)
        assert [o.outputs[0].token_ids for o in cold] == [o.outputs[0].token_ids for o in warm]


def test_later_turns_agree(agreement: Agreement) -> None:
    """A conversation finds its modules and its earlier turns in the cache, and only those."""
    llm, tally = agreement.llm, Tally(TOLERANCE)
    maker, rng = CaseMaker(3, agreement.explain, ClientError), Random(3)
    params = greedy(NUM_LOGPROBS)
    for schema in FIXED_SCHEMAS:
        llm.add_schema(schema.pml)
        messages = [{"role": "user", "content": maker.prompt(schema).pml}]
        num_tokens = 0
        for _ in range(3):
            (output,) = llm.chat(messages, params, use_tqdm=False)
            explanation = explain_chat(llm, messages)
            tally.add(str(messages), difference(agreement.reference, output, explanation))
            assert output.num_cached_tokens >= num_tokens // agreement.block_size * (
                agreement.block_size
            )
            num_tokens = len(output.prompt_token_ids)
            answer = random_text(rng, rng.randint(2, 70))
            messages.append({"role": "assistant", "content": answer})
            messages.append({"role": "user", "content": random_text(rng, rng.randint(2, 70))})
    assert not tally.wrong


def test_marked_chats_agree(
    agreement: Agreement, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Modules of no schema, in any message; the text is that of the same chat without marks."""
    llm, tally, rng = agreement.llm, Tally(TOLERANCE), Random(agreement.block_size)
    tokenizer, plans = llm.get_tokenizer(), []
    plan_written = FrontEnd.plan_written
    monkeypatch.setattr(
        FrontEnd,
        "plan_written",
        lambda *args, **kwargs: plans.append(plan_written(*args, **kwargs)) or plans[-1],
    )
    num_cached = 0
    for _ in range(NUM_CHATS):
        messages = random_chat(rng, ("tool",))
        plans.clear()
        (output,) = llm.chat(messages, modules_only(greedy(NUM_LOGPROBS)), use_tqdm=False)
        explanation = Explanation.of(plans[0]).to_dict() if plans else None
        tally.add(str(messages), difference(agreement.reference, output, explanation))
        with applied(RequestOptions(has_marks=False)):
            (plain,) = llm.chat(messages, greedy(0, max_tokens=1), use_tqdm=False)
        texts = [tokenizer.decode(o.prompt_token_ids) for o in (output, plain)]
        assert texts[0] == texts[1]
        num_cached += plans[0].num_cached_tokens if plans else 0
    with capsys.disabled():
        print(f"\nblock size {agreement.block_size}: chats with marks: {tally}")
    assert not tally.wrong
    assert num_cached > 20 * NUM_CHATS


def explain_chat(llm: LLM, messages: list[dict[str, str]]) -> dict[str, Any]:
    """The plan of a conversation whose first message is a PML prompt."""
    document, chat = rendered(llm.get_tokenizer(), messages)
    return Explanation.of(llm.front_end.plan(document, chat=chat)).to_dict()


def test_without_reuse_is_one_plain_prefill(agreement: Agreement) -> None:
    llm, tally = agreement.llm, Tally(TOLERANCE)
    maker = CaseMaker(2, agreement.explain, ClientError)
    for schema in FIXED_SCHEMAS:
        llm.add_schema(schema.pml)
        case = maker.prompt(schema)
        (output,) = llm.generate(case.pml, greedy(NUM_LOGPROBS), reuse=False, use_tqdm=False)
        assert output.num_cached_tokens == 0
        explanation = without_modules(case.explanation)
        tally.add(case.pml, difference(agreement.reference, output, explanation))
    assert not tally.wrong


@pytest.mark.parametrize(
    ("block_size", "num_prompts"),
    [
        (32, NUM_PROMPTS_WHOLE),
        *(
            pytest.param(size, NUM_PROMPTS // len(BLOCK_SIZES), marks=pytest.mark.slow)
            for size in BLOCK_SIZES
        ),
    ],
)
def test_the_whole_model_agrees(
    smollm2: Path, capsys: pytest.CaptureFixture[str], block_size: int, num_prompts: int
) -> None:
    with start(smollm2, block_size) as llm:
        modular, plain = Agreement(llm, Reference(smollm2), NUM_LOGPROBS, TOLERANCE).run(
            num_prompts, seed=block_size, num_random_schemas=NUM_RANDOM_SCHEMAS
        )
    with capsys.disabled():
        print(f"\nwhole model, block size {block_size}: {modular}; plain prompts: {plain}")
    assert modular.num_outputs == num_prompts
    assert not modular.wrong
    assert not plain.wrong
    # One in twenty; of few, one.
    assert num_prompts - modular.num_within(1e-4) <= max(1, num_prompts // 20)


def test_bfloat16_agrees_by_and_large(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_bfloat16(LLAMA.save(tmp_path), capsys)


# Minutes where the CPU emulates bfloat16.
@pytest.mark.slow
def test_the_whole_model_agrees_in_bfloat16(
    smollm2: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_bfloat16(smollm2, capsys)


def check_bfloat16(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rounding differs between kernels, so tokens may; most must not."""
    reference = Reference(model, torch.bfloat16)
    with start(model, 32, "bfloat16") as llm:
        modular, plain = Agreement(llm, reference, NUM_LOGPROBS).run(
            NUM_PROMPTS_BFLOAT16, seed=0, num_random_schemas=2
        )
    with capsys.disabled():
        print(
            f"\nbfloat16: {modular.share_of_equal_tokens:.1%} of {modular.num_steps} tokens equal; "
            f"plain prompts beside them: {plain.share_of_equal_tokens:.1%} of {plain.num_steps}"
        )
    assert modular.share_of_equal_tokens > 0.9
    assert modular.share_of_equal_tokens > plain.share_of_equal_tokens - 0.05


def main() -> None:
    """Runs the comparison with the numbers of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=NUM_PROMPTS, help="over all block sizes")
    parser.add_argument("--block-sizes", type=int, nargs="+", default=BLOCK_SIZES)
    parser.add_argument("--schemas", type=int, default=NUM_RANDOM_SCHEMAS, help="random ones")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    from vllm_promptcache.models import embedded_model

    model, rng = Path(embedded_model()), Random(args.seed)
    reference = Reference(model)
    for block_size in args.block_sizes:
        with start(model, block_size) as llm:
            modular, plain = Agreement(llm, reference, NUM_LOGPROBS, TOLERANCE).run(
                args.prompts // len(args.block_sizes),
                seed=rng.randrange(2**32),
                num_random_schemas=args.schemas,
            )
        print(f"block size {block_size}: {modular}; plain prompts: {plain}")
        for prompt, wrong in modular.wrong:
            print(f"  wrong: {wrong}: {prompt}")


if __name__ == "__main__":
    main()
