"""What holds for every schema and prompt."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from random import Random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.generators import Schema, random_prompt, random_schema
from tests.layout.compiling import positions
from tests.layout.templates import CHATML
from tests.layout.word_tokenizer import WordTokenizer
from tests.plan.planning import PAPER, engine_order
from vllm_promptcache.layout import LayoutTokenizer, ModuleLayout, SchemaLayout, compile_schema
from vllm_promptcache.layout.placement import CompactPlacement
from vllm_promptcache.plan import Explanation, PromptPlan
from vllm_promptcache.plan.compiled import SchemaCompiler
from vllm_promptcache.plan.lay_out import plan_prompt
from vllm_promptcache.plan.prompt_plan import baseline
from vllm_promptcache.plan.schemas import Schemas
from vllm_promptcache.plan.warm import warm_plans
from vllm_promptcache.pml import parse_prompt, parse_schema
from vllm_promptcache.policies import NO_REPAIR, Repair
from vllm_promptcache.sequence.block_table import BlockTable
from vllm_promptcache.sequence.codec import unpack_plan
from vllm_promptcache.sequence.prompt import ModulePrompt

MAX_MODEL_LEN = 2048
TOKENIZER = LayoutTokenizer(WordTokenizer(CHATML, bos="<s>", adds_bos=True))
SCHEMAS = Schemas(SchemaCompiler(TOKENIZER, MAX_MODEL_LEN, PAPER.policy))
plan_it = partial(
    plan_prompt,
    lay_out_inline=partial(SCHEMAS.inline.get, tenant=b""),
    max_model_len=MAX_MODEL_LEN,
    promotes=False,
)

many = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
seeds = st.integers(0, 2**32)


def compiled(schema: Schema) -> SchemaLayout:
    return compile_schema(
        parse_schema(schema.pml),
        TOKENIZER,
        default_policy=PAPER.policy,
        max_model_len=MAX_MODEL_LEN,
    )


def layout_of(seed: int) -> SchemaLayout:
    return compiled(random_schema(Random(seed), "s"))


def planned(seed: int, block_size: int) -> tuple[SchemaLayout, PromptPlan]:
    """A random prompt."""
    rng = Random(seed)
    schema = random_schema(rng, "s")
    layout = compiled(schema)
    prompt = parse_prompt(random_prompt(rng, schema))
    return layout, plan_it(prompt, layout, TOKENIZER, block_size=block_size)


def placed(plan: PromptPlan) -> list[tuple[int, int]]:
    """Position and token of all that a prompt consists of."""
    explanation = Explanation.of(plan)
    cached = [
        (position, token_id)
        for module in explanation.modules
        for position, token_id, is_reused in zip(
            module.position_ids, module.token_ids, module.reused, strict=True
        )
        if is_reused
    ]
    new = [
        pair
        for tokens in explanation.new
        for pair in zip(tokens.position_ids, tokens.token_ids, strict=True)
    ]
    return cached + new


@given(seed=seeds, block_size=st.integers(1, 40))
@many
def test_plans(seed: int, block_size: int) -> None:
    _, plan = planned(seed, block_size)
    tokens = placed(plan)
    taken = [position for position, _ in tokens]
    assert len(set(taken)) == len(taken) == plan.num_tokens
    assert max(taken) + 1 == plan.next_position < MAX_MODEL_LEN
    assert plan.num_cached_tokens + plan.num_new_tokens == plan.num_tokens
    assert plan.num_new_tokens >= 1
    assert plan.prompt_token_ids == [token_id for _, token_id in sorted(tokens)]
    new = [position for part in plan.new for position in range(part.start, part.end)]
    assert new == positions(plan.sequence.position_runs) == sorted(new)
    assert max(new) == max(taken)


@given(seed=seeds, block_size=st.integers(1, 40))
@many
def test_engine_order(seed: int, block_size: int) -> None:
    """The engine finds every module's tokens again where the design says that they are."""
    _, plan = planned(seed, block_size)
    rest = engine_order(plan)
    read = [module for module in plan.modules if module.num_tokens]
    for part in BlockTable.of(plan.sequence, block_size).cached:
        kept = read[part.span].layout.kept_token_ids
        assert _take(rest, part.kept.num_tokens) == list(kept[part.kept.start : part.kept.end])
    assert rest == [token_id for part in plan.new for token_id in part.token_ids]


@given(seed=seeds, block_size=st.integers(1, 40))
@many
def test_plans_round_trip(seed: int, block_size: int) -> None:
    layout, plan = planned(seed, block_size)
    for one in (plan, baseline(plan), *warm_plans(layout, block_size=block_size)):
        packed = unpack_plan(one.packed, num_prompt_tokens=one.num_tokens)
        assert packed.sequence == one.sequence
        prompt = ModulePrompt.of(packed, one.prompt_token_ids)
        known: set[bytes] = set()
        for module in packed.modules:
            assert all(span.key in known for span in prompt.spec(module.key).sequence.spans)
            known.add(module.key)
        for planned_module in one.modules:
            if planned_module.reused:
                found, expected = prompt.spec(planned_module.layout.key), planned_module.layout
                assert found.num_kept_tokens == expected.num_kept_tokens
                assert found.token_ids == expected.token_ids
                assert tuple(prompt.spec(prompt.origin(found.key)).sequence.position_runs) == (
                    expected.encoded_runs
                )


@given(seed=seeds, block_size=st.integers(1, 40))
@many
def test_policies_change_no_token(seed: int, block_size: int) -> None:
    """What is reused differs between policies, the prompt does not."""
    rng = Random(seed)
    schema = random_schema(rng, "s")
    layout = compiled(schema)
    prompt = parse_prompt(random_prompt(rng, schema))
    outcomes = set()
    for is_exact, repair in ((True, None), (False, NO_REPAIR), (False, Repair("head", 5))):
        one = replace(prompt, is_exact=is_exact, repair=repair)
        plan = plan_it(one, layout, TOKENIZER, block_size=block_size)
        outcomes.add(tuple(sorted(placed(plan))))
    assert len(outcomes) == 1


@given(seed=seeds, block_size=st.integers(1, 40))
@many
def test_baselines(seed: int, block_size: int) -> None:
    _, plan = planned(seed, block_size)
    plain = baseline(plan)
    assert placed(plain) == sorted(placed(plan))
    assert plain.prompt_token_ids == [token_id for _, token_id in placed(plain)]


@given(seed=seeds)
@many
def test_layouts(seed: int) -> None:
    layout = layout_of(seed)
    for module in layout.modules:
        own = positions(module.position_runs)
        assert len(own) == len(set(own)) == len(module.token_ids)
        assert all(module.start <= position < module.end for position in own)
        kept = [module.token_ids[index] for index in positions(module.kept_runs)]
        assert kept == list(module.kept_token_ids)
        assert len(positions(module.kept_position_runs)) == len(kept)
        for child in layout.descendants(module):
            if isinstance(layout.placement, CompactPlacement):
                assert child.start >= module.head_end
                continue
            assert module.start <= child.start <= child.end <= module.end
            assert not set(own) & set(positions(child.position_runs))


@given(seed=seeds, other=seeds)
@many
def test_keys_are_equal_if_and_only_if_their_inputs_are(seed: int, other: int) -> None:
    inputs: dict[bytes, object] = {}
    keys: dict[object, bytes] = {}
    for layout in (layout_of(seed), layout_of(other), layout_of(seed)):
        for module in layout.modules:
            signature = _signature(layout, module)
            assert inputs.setdefault(module.key, signature) == signature
            assert keys.setdefault(signature, module.key) == module.key


def _signature(layout: SchemaLayout, module: ModuleLayout) -> object:
    """All that a module's KV depends on, written another way than its key."""
    context = tuple(
        (_signature(layout, layout.at(span.index)), span.num_tokens) for span in module.context
    )
    kept = frozenset(positions(module.kept_runs))
    return module.token_ids, tuple(positions(module.position_runs)), kept, context


def _take(tokens: list[int], num_tokens: int) -> list[int]:
    taken, tokens[:] = tokens[:num_tokens], tokens[num_tokens:]
    return taken
