"""Modules that stand in prompts, in no schema."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.layout.templates import CHATML
from tests.layout.word_tokenizer import WordTokenizer
from tests.plan.planning import PAPER, USERS, Prompts, make_planner
from vllm_promptcache.errors import PMLError
from vllm_promptcache.plan import Explanation, Planner, PromptPlan
from vllm_promptcache.plan.budgets import Budgets
from vllm_promptcache.plan.parts import PlannedModule
from vllm_promptcache.plan.written import WrittenText
from vllm_promptcache.pml import FieldLocation, Inline, Text
from vllm_promptcache.sequence.codec import INLINE

ONE, TWO = "<module>one one one</module>", '<module name="b">two two</module>'
LONG = f"<module>{'long ' * 5}</module>".replace(" <", "<")


@pytest.fixture
def words() -> WordTokenizer:
    return WordTokenizer(CHATML)


@pytest.fixture
def planner(words: WordTokenizer) -> Planner:
    return make_planner(words, max_model_len=2000, block_size=4)


def plan(planner: Planner, children: str, salt: str | None = None) -> PromptPlan:
    return planner.plan(f"<prompt>{children}</prompt>", salt=salt)


def read(plan: PromptPlan) -> list[PlannedModule]:
    return [module for module in plan.modules if module.reused]


def origins(plan: PromptPlan) -> set[bytes]:
    """Keys of the modules where their own schemas have them."""
    moved = {found.key: found.origin for found in plan.request.relocations}
    return {moved.get(span.key, span.key) for span in plan.request.spans}


def text(plan: PromptPlan, words: WordTokenizer) -> str:
    return " ".join(words.words[token_id] for token_id in plan.prompt_token_ids)


def test_they_are_read_where_they_stand(planner: Planner, words: WordTokenizer) -> None:
    planned = plan(planner, f"Read: {ONE} and {TWO} now.")
    assert text(planned, words) == "Read : one one one and two two now ."
    assert [p.layout.path for p in read(planned)] == ["#1", "#2 b"]
    assert [p.first_position for p in read(planned)] == [2, 6]
    assert [(t.start, len(t.token_ids)) for t in planned.new] == [(0, 2), (5, 1), (8, 2)]
    assert planned.schema == INLINE
    assert planned.num_cached_tokens == 5
    assert {p.layout.policy.encode for p in read(planned)} == {"primed"}


def test_a_text_is_one_module_wherever_it_stands(planner: Planner) -> None:
    first = plan(planner, f"{ONE}{TWO} x")
    second = plan(planner, f"Read {TWO.replace('b', 'c')} and {ONE} y z")
    assert origins(first) == origins(second)
    assert len(origins(first)) == 2
    other = plan(planner, "<module>one one one one</module> x")
    assert not origins(first) & origins(other)


def test_a_text_may_be_there_twice(planner: Planner, words: WordTokenizer) -> None:
    planned = plan(planner, f"{ONE} and {ONE} x")
    assert text(planned, words) == "one one one and one one one x"
    assert len(origins(planned)) == 1
    assert len({span.key for span in planned.request.spans}) == 2
    assert planned.num_cached_tokens == 6
    # It travels once, with what it is encoded behind.
    assert len({m.key for m in planned.request.modules}) == len(planned.request.modules)


def test_what_it_is_encoded_behind_is_its_role_and_a_primer(planner: Planner) -> None:
    keys = {}
    for role in ("user", "system", "assistant"):
        planned = plan(planner, f"<{role}>Secret words {ONE}</{role}> x")
        keys[role] = origins(planned)
        others = plan(planner, f"<{role}>{ONE} {TWO} Others</{role}> y")
        assert keys[role] < origins(others)
    keys["none"] = origins(plan(planner, f"{ONE} x"))
    assert len({frozenset(found) for found in keys.values()}) == 4
    contexts = [m.layout.path for m in plan(planner, f"Secret {ONE} x").modules if not m.reused]
    assert contexts == ["", "(primer)"]


def test_modules_share_what_they_are_encoded_behind(planner: Planner) -> None:
    planned = plan(planner, f"<user>{ONE}{TWO}<module>three</module> x</user>")
    unread = [module.layout.path for module in planned.modules if not module.reused]
    assert unread == ["", "(primer)"]


def test_a_salt_makes_other_modules(planner: Planner) -> None:
    prompts = [origins(plan(planner, f"{ONE} x", salt)) for salt in (None, "a", "b", "a")]
    assert prompts[1] == prompts[3]
    assert len({frozenset(found) for found in prompts}) == 3
    beginnings = set()
    for salt in (None, "a", "b"):
        written = WrittenText("Be kind. ", [Text("x", FieldLocation("here"))])
        beginnings |= origins(planner.plan_written(written, salt=salt))
    assert len(beginnings) == 3
    contexts = [
        {m.key for m in plan(planner, f"{ONE} x", salt).request.modules} for salt in (None, "a")
    ]
    assert not contexts[0] & contexts[1]


def test_they_stand_among_the_modules_of_a_schema() -> None:
    for layout in ("schema", "compact"):
        modules = "<module name='a'>aa aa</module> rest <module name='b'>bb</module>"
        prompts = Prompts(modules, f'layout="{layout}"')
        planned = prompts.plan(f"<a/>{ONE} and <b>{TWO}</b> {ONE} end")
        words = " ".join(prompts.words.words[i] for i in planned.prompt_token_ids)
        found = [p.layout.path for p in sorted(read(planned), key=lambda p: p.first_position)]
        if layout == "compact":
            assert words == "aa aa one one one and bb rest two two one one one end"
        else:
            assert words == "aa aa rest one one one and bb two two one one one end"
        assert [path for path in found if path] == ["a", "#1", "b", "#2 b", "#3"]


def test_an_exact_prompt_computes_nothing_by_itself(planner: Planner) -> None:
    planned = planner.plan(f'<prompt encode="exact">{LONG}{TWO}{LONG} x</prompt>')
    assert {p.layout.chain for p in read(planned)} == {"exact"}
    assert planned.num_cached_tokens == 12


def test_a_combination_may_be_promoted(planner: Planner) -> None:
    assert plan(planner, f"{LONG}{TWO}{LONG} x").chain is not None
    silent = make_planner(
        WordTokenizer(CHATML), replace(USERS, promote_after=0), max_model_len=2000, block_size=4
    )
    assert plan(silent, f"{LONG}{TWO}{LONG} x").chain is None


def test_a_module_says_how_it_is_encoded(planner: Planner) -> None:
    planned = plan(planner, '<module encode="isolated">one one</module> x')
    assert read(planned)[0].layout.policy.encode == "isolated"
    assert [m.layout.path for m in planned.modules] == ["", "#1"]
    repaired = plan(planner, '<module repair="head:1">one one</module> x')
    assert repaired.num_cached_tokens == 1


def test_without_reuse_it_is_one_prefill(planner: Planner) -> None:
    document = f"<prompt>{ONE} and {TWO} x</prompt>"
    whole = planner.plan(document, reuse=False)
    assert whole.num_cached_tokens == 0
    assert whole.prompt_token_ids == planner.plan(document).prompt_token_ids


def test_a_prompt_may_end_with_one(planner: Planner) -> None:
    planned = plan(planner, f"x {ONE}")
    assert planned.next_position == 4
    assert planned.num_cached_tokens == 2


def test_without_a_chat_template_roles_are_refused_and_modules_are_not() -> None:
    planner = make_planner(WordTokenizer(None), PAPER, max_model_len=100, block_size=4)
    assert plan(planner, f"{ONE} x").num_cached_tokens == 3


def test_a_bos_stands_before_all(words: WordTokenizer) -> None:
    tokenizer = WordTokenizer(CHATML, bos="<s>", adds_bos=True)
    planner = make_planner(tokenizer, max_model_len=2000, block_size=4)
    assert text(plan(planner, f"{ONE} x"), tokenizer) == "<s> one one one x"


def test_it_may_not_be_longer_than_the_model() -> None:
    planner = make_planner(WordTokenizer(CHATML), max_model_len=8, block_size=4)
    with pytest.raises(PMLError, match=r"12 (positions|tokens)"):
        plan(planner, f"<module>{'one ' * 12}</module> x")


def test_there_may_not_be_too_many() -> None:
    budgets = Budgets(max_rows=100, max_imports=2)
    planner = make_planner(WordTokenizer(CHATML), max_model_len=2000, block_size=4, budgets=budgets)
    plan(planner, f"{ONE}{TWO} x")
    with pytest.raises(PMLError, match="more than 2 imports and modules"):
        plan(planner, f"{ONE}{TWO}{ONE} x")


def test_it_is_explained(planner: Planner) -> None:
    explained = Explanation.of(plan(planner, f"Read {ONE} x"))
    (module,) = [m for m in explained.modules if m.path == "#1"]
    assert module.position_ids == (1, 2, 3)
    assert module.encoded_position_ids != module.position_ids
    assert [explained.modules[index].path for index, _ in module.context] == ["(primer)"]


def test_roles_are_written_as_the_template_writes_them(
    planner: Planner, words: WordTokenizer
) -> None:
    """With its preamble, and the generation prompt."""
    for roles in (("user",), ("system", "user"), ("user", "assistant", "user")):
        children = "".join(f"<{role}>{ONE} {role}</{role}>" for role in roles)
        messages = [{"role": role, "content": f"one one one {role}"} for role in roles]
        expected = words.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        planned = plan(planner, children)
        assert planned.prompt_token_ids == words.ids(expected)
        assert planned.num_cached_tokens >= 3 * len(roles)


def test_a_written_text_has_a_beginning_that_others_share(planner: Planner) -> None:
    def planned(end: str) -> PromptPlan:
        place = FieldLocation("here")
        module = Inline("one one one", "user", None, None, None, place)
        parts = [Text(f"{end} ", place), module, Text(" x", place)]
        return planner.plan_written(WrittenText("<s> Be kind to all. ", parts))

    first, second = planned("Read"), planned("Look here")
    assert first.request.has_root
    assert first.request.spans[0] == second.request.spans[0]
    assert origins(first) == origins(second)
    assert [p.layout.path for p in read(first)] == ["", "#1"]
    assert first.num_cached_tokens == 9
    assert exact(first) == {""}


def exact(plan: PromptPlan) -> set[str]:
    """Paths of what equals a plain prefill."""
    return {path for path, read_as in plan.detail["modules"] if read_as == "exact"}


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("beginning", ["<s> A b.", "A b.", ""])
def test_bos_is_where_the_template_writes_it(beginning: str, adds_bos: bool) -> None:
    tokenizer = WordTokenizer(CHATML, bos="<s>", adds_bos=adds_bos)
    planner = make_planner(tokenizer, max_model_len=2000, block_size=4)
    written = WrittenText(beginning, [Text("x y", FieldLocation("here"))])
    assert planner.plan_written(written).prompt_token_ids == tokenizer.ids(written.text)
