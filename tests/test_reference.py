"""The reference against single forward passes, so that it can be trusted where it is the judge."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from random import Random
from typing import Any

import pytest
import torch

from tests.families import LLAMA, LLAMA3_ROPE, SUPPORTED, Family, build_tokenizer
from tests.reference import Reference, ReferenceOutput

NUM_STEPS = 6
VOCAB_SIZE = len(build_tokenizer())
SPLIT_AT = (0, 10, 25, 40, 47)


@pytest.fixture(scope="module", params=(LLAMA, *SUPPORTED), ids=lambda family: family.name)
def reference(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Reference:
    return Reference(request.param.save(tmp_path_factory.mktemp(request.param.name)))


def some_tokens(num_tokens: int, seed: int = 0) -> list[int]:
    rng = Random(seed)
    return [rng.randrange(VOCAB_SIZE) for _ in range(num_tokens)]


def a_module(
    token_ids: Sequence[int],
    start: int,
    context: Sequence[Sequence[int]] = (),
    dropped: Sequence[int] = (),
) -> dict[str, Any]:
    """A module at `start` whose tokens number `dropped` are placeholders."""
    return {
        "path": "",
        "token_ids": list(token_ids),
        "position_ids": list(range(start, start + len(token_ids))),
        "encoded_position_ids": list(range(start, start + len(token_ids))),
        "kept": [index not in dropped for index in range(len(token_ids))],
        "reused": [index not in dropped for index in range(len(token_ids))],
        "context": [list(span) for span in context],
    }


def a_prompt(
    modules: Sequence[dict[str, Any]], token_ids: Sequence[int], start: int
) -> dict[str, Any]:
    """An explanation with the parts that the reference reads."""
    position_ids = list(range(start, start + len(token_ids)))
    return {
        "modules": list(modules),
        "new": [{"token_ids": list(token_ids), "position_ids": position_ids}],
        "next_position": position_ids[-1] + 1,
    }


def consecutive_modules(token_ids: Sequence[int], *, exact: bool) -> list[dict[str, Any]]:
    """Splits a text into modules: each behind all before it, or each alone."""
    bounds = list(pairwise(SPLIT_AT))
    lengths = [end - start for start, end in bounds]
    return [
        a_module(token_ids[start:end], start, list(enumerate(lengths[:index])) if exact else ())
        for index, (start, end) in enumerate(bounds)
    ]


def one_pass(
    reference: Reference,
    token_ids: Sequence[int],
    position_ids: Sequence[int],
    visible: torch.Tensor,
) -> torch.Tensor:
    """Log-probabilities behind the last token, from one pass without a cache.

    Args:
        visible: Which tokens each token attends to, `[num_tokens, num_tokens]` booleans.
    """
    mask = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
    with torch.inference_mode():
        output = reference.model(
            input_ids=torch.tensor([list(token_ids)]),
            position_ids=torch.tensor([list(position_ids)]),
            attention_mask=mask[None, None],
            use_cache=False,
        )
    return output.logits[0, -1].log_softmax(dim=-1)


def largest_difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one - other).abs().max().item()


def test_full_contexts_equal_the_models_own_generate(reference: Reference) -> None:
    text = some_tokens(60)
    modules = consecutive_modules(text, exact=True)
    output = reference.run(a_prompt(modules, text[47:], 47), NUM_STEPS)
    generated = reference.model.generate(
        torch.tensor([text]),
        attention_mask=torch.ones(1, len(text), dtype=torch.long),
        max_new_tokens=NUM_STEPS,
        min_new_tokens=NUM_STEPS,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    logprobs = torch.cat(generated.logits).log_softmax(dim=-1)
    assert largest_difference(output.logprobs[0], logprobs[0]) < 2e-5
    plain = reference.plain(text, range(len(text)), NUM_STEPS)
    assert output.token_ids == plain.token_ids
    assert largest_difference(output.logprobs, plain.logprobs) < 2e-5


def test_isolated_modules_equal_one_pass_with_their_mask(reference: Reference) -> None:
    """Three modules apart from each other in position, one with a placeholder, and new tokens."""
    modules = [
        a_module(some_tokens(9, 1), 3),
        a_module(some_tokens(14, 2), 300, dropped=(5, 6, 7)),
        a_module(some_tokens(1, 3), 90),
    ]
    new = some_tokens(7, 4)
    output = reference.run(a_prompt(modules, new, 400), 1)
    owners = torch.tensor([0] * 9 + [1] * 14 + [2] + [3] * 7)
    visible = (owners[:, None] == owners) | (owners == 3)[:, None]
    visible = visible.tril()
    visible[-7:, [14, 15, 16]] = False
    token_ids = [token for module in modules for token in module["token_ids"]] + new
    position_ids = [position for module in modules for position in module["position_ids"]]
    expected = one_pass(reference, token_ids, [*position_ids, *range(400, 407)], visible)
    assert largest_difference(output.first_logprobs, expected) < 2e-5


def test_context_is_the_first_kept_tokens(reference: Reference) -> None:
    """A module behind a part of another one that has a placeholder inside that part."""
    modules = [
        a_module(some_tokens(12, 1), 0, dropped=(2,)),
        a_module(some_tokens(5, 2), 12, context=[(0, 6)]),
    ]
    new = some_tokens(3, 3)
    output = reference.run(a_prompt(modules, new, 17), 1)
    visible = torch.ones(20, 20).tril().bool()
    visible[12:, 2] = False
    visible[12:17, 7:12] = False
    token_ids = [*modules[0]["token_ids"], *modules[1]["token_ids"], *new]
    expected = one_pass(reference, token_ids, range(20), visible)
    assert largest_difference(output.first_logprobs, expected) < 2e-5


def test_order_of_modules_does_not_matter(reference: Reference) -> None:
    text = some_tokens(60)
    modules = consecutive_modules(text, exact=False)
    output = reference.run(a_prompt(modules, text[47:], 47), 1)
    other = reference.run(a_prompt(modules[::-1], text[47:], 47), 1)
    assert largest_difference(output.logprobs, other.logprobs) < 2e-5


def test_new_tokens_are_ordered_by_position(reference: Reference) -> None:
    """An argument between modules sees what is before it, and new text sees the argument."""
    modules = [a_module(some_tokens(5, 1), 0), a_module(some_tokens(5, 2), 8)]
    argument, text = some_tokens(3, 3), some_tokens(4, 4)
    prompt = a_prompt(modules, text, 13)
    prompt["new"].append({"token_ids": argument, "position_ids": [5, 6, 7]})
    owners = torch.tensor([0] * 5 + [1] * 5 + [2] * 7)
    visible = ((owners[:, None] == owners) | (owners == 2)[:, None]).tril()
    token_ids = [*modules[0]["token_ids"], *modules[1]["token_ids"], *argument, *text]
    position_ids = [*range(5), *range(8, 13), *range(5, 8), *range(13, 17)]
    positions = torch.tensor(position_ids)
    visible &= positions <= positions[:, None]
    expected = one_pass(reference, token_ids, position_ids, visible)
    assert largest_difference(reference.run(prompt, 1).first_logprobs, expected) < 2e-5


def test_score_agrees_with_run(reference: Reference) -> None:
    prompt = a_prompt(consecutive_modules(some_tokens(60), exact=False), some_tokens(5, 1), 50)
    output = reference.run(prompt, NUM_STEPS)
    scored = reference.score(prompt, output.token_ids)
    assert scored.token_ids == output.token_ids
    assert largest_difference(scored.logprobs, output.logprobs) < 2e-5
    wrong = [(output.token_ids[0] + 1) % VOCAB_SIZE, *output.token_ids[1:]]
    assert reference.score(prompt, wrong).token_ids[0] == output.token_ids[0]


def test_encoded_modules_are_not_mixed_up(reference: Reference) -> None:
    """The same tokens elsewhere, or behind another context, are another module."""
    token_ids, new = some_tokens(8, 1), some_tokens(3, 2)
    first, second = a_module(some_tokens(6, 3), 0), a_module(some_tokens(6, 4), 0)
    variants = [
        [first, a_module(token_ids, 6, context=[(0, 6)])],
        [first, a_module(token_ids, 6, context=[(0, 5)])],
        [first, a_module(token_ids, 6)],
        [first, a_module(token_ids, 7)],
        [second, a_module(token_ids, 6, context=[(0, 6)])],
    ]
    outputs = [reference.run(a_prompt(modules, new, 20), 1).logprobs for modules in variants]
    assert all(
        largest_difference(one, other) > 1e-3
        for index, one in enumerate(outputs)
        for other in outputs[:index]
    )
    again = [reference.run(a_prompt(modules, new, 20), 1).logprobs for modules in variants]
    assert all(map(torch.equal, outputs, again))


def test_moved_modules_equal_those_encoded_there(reference: Reference) -> None:
    """Another place is another angle of all keys: of the module's, and of its context's."""
    if reference.model.config.model_type in ("opt", "gpt_neox"):
        pytest.skip("no engine moves its modules")
    before, module = some_tokens(20, 1), some_tokens(30, 2)
    outputs = []
    for home in (200, 900):
        modules = [a_module(before, home), a_module(module, home + 20, context=[(0, 20)])]
        modules[1]["position_ids"] = list(range(920, 950))
        # The context is encoded for the module only.
        modules[0]["reused"] = [False] * 20
        outputs.append(reference.run(a_prompt(modules, some_tokens(5, 3), 950), 1).first_logprobs)
    moved, there = outputs
    # At position 900 an angle in float32 is off by up to 3e-5.
    assert largest_difference(moved, there) < 1e-4


def test_positions_matter(reference: Reference) -> None:
    """One position off in one module is far beyond any tolerance: the tests would see it."""
    new = some_tokens(5, 1)
    right = [a_module(some_tokens(20, 2), 0), a_module(some_tokens(20, 3), 20)]
    wrong = [right[0], a_module(some_tokens(20, 3), 21)]
    outputs = [reference.run(a_prompt(modules, new, 50), 1).logprobs for modules in (right, wrong)]
    assert largest_difference(*outputs) > 1e-2


def test_llama3_scaling_changes_keys(tmp_path_factory: pytest.TempPathFactory) -> None:
    families = (
        LLAMA,
        Family("scaled", lambda **own: LLAMA.make_config(rope_parameters=LLAMA3_ROPE, **own)),
    )
    modules = [a_module(some_tokens(30), 500)]
    plain, scaled = (
        Reference(family.save(tmp_path_factory.mktemp(family.name))).cached_kv(
            a_prompt(modules, [1], 600)
        )
        for family in families
    )
    assert torch.equal(plain.layers[0][1], scaled.layers[0][1])
    assert largest_difference(plain.layers[0][0], scaled.layers[0][0]) > 0.1


def test_margins_tell_near_ties() -> None:
    output = ReferenceOutput.of_logits(torch.tensor([[1.0, 3.0, 3.0 - 1e-5], [5.0, 1.0, 2.0]]))
    assert output.token_ids == [1, 0]
    assert output.margins[0] < 1e-4 < output.margins[1]
