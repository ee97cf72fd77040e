"""Where new text goes (paper, section 3.4)."""

from __future__ import annotations

import pytest

from tests.layout.templates import CHATML
from tests.layout.word_tokenizer import WordTokenizer
from tests.plan.planning import Prompts, column
from vllm_promptcache.errors import PMLError
from vllm_promptcache.sequence.codec import unpack_plan
from vllm_promptcache.sequence.runs import Run
from vllm_promptcache.sequence.spans import Relocation

# Positions: r 0, a 1-2, gap 3-5, b 6, s 7, c 8-9, d 10 and 12, e 11, u 13-14, long 13-17, z 18.
SCHEMA = """r <module name="a">a a</module><module name="gap">g g g</module>
    <module name="b">b</module> s <module name="c">c c</module>
    <module name="d">d <module name="e">e</module> d</module>
    <union><module name="u">u u</module><module name="long">v v v v v</module></union>
    <module name="z">z</module>"""


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    return Prompts(SCHEMA)


def test_text_behind_the_last_import_follows_everything(prompts: Prompts) -> None:
    assert prompts.new("<a/> one two") == {8: "one", 9: "two"}
    assert prompts.new("<z/><a/> one") == {19: "one"}
    assert prompts.new("<d><e/> one</d>") == {13: "one"}
    assert prompts.new("<d><e/> one</d> two") == {13: "one", 14: "two"}


def test_text_without_imports_follows_the_schemas_text(prompts: Prompts) -> None:
    assert prompts.new("one two") == {8: "one", 9: "two"}


def test_text_behind_an_import_starts_where_it_ends(prompts: Prompts) -> None:
    assert prompts.new("<a/> one <b/> two") == {3: "one", 8: "two"}
    assert list(prompts.new("<a/> one two three <b/> four")) == [3, 4, 5, 8]


def test_text_skips_the_schemas_own_text(prompts: Prompts) -> None:
    assert prompts.new("<b/> one <d/> two") == {8: "one", 13: "two"}


def test_text_behind_an_outer_module_starts_behind_all_of_it(prompts: Prompts) -> None:
    assert prompts.new("<d/> one <z/> two") == {13: "one", 19: "two"}


def test_text_behind_a_unions_member_starts_at_its_own_end(prompts: Prompts) -> None:
    assert prompts.new("<u/> one <z/> two") == {15: "one", 19: "two"}


def test_text_within_an_import_skips_its_own_text() -> None:
    prompts = Prompts(
        '<module name="m">1 <module name="n">2</module> 3</module><module name="g">g g</module>'
        '<module name="o">4</module>'
    )
    assert prompts.new("<m><n/> in</m><o/> end") == {3: "in", 6: "end"}
    # It reaches beyond the module, so what is behind the module starts later.
    assert prompts.new("<m><n/> in</m> out <o/> end") == {3: "in", 4: "out", 6: "end"}
    # The same without spelling out the parent.
    assert prompts.new("<n/> in <o/> end") == {3: "in", 6: "end"}


def test_leading_text_uses_the_space_before_the_first_import(prompts: Prompts) -> None:
    assert prompts.new("one two <b/> end") == {1: "one", 2: "two", 8: "end"}


def test_leading_text_within_an_import() -> None:
    prompts = Prompts(
        """<module name="m">1 <module name="g">g g</module><module name="n">2</module></module>
        <module name="h">h</module><module name="o">3</module>"""
    )
    assert prompts.new("<m>in <n/></m> end") == {1: "in", 4: "end"}
    # No import in the same element: behind the module's own text.
    assert prompts.new("<m>in</m><o/> end") == {1: "in", 6: "end"}
    assert prompts.new("<m>in</m> out <o/> end") == {1: "in", 4: "out", 6: "end"}


def test_text_within_a_module_does_not_start_before_it() -> None:
    prompts = Prompts(
        '<module name="g">g g</module><module name="m"><module name="n">1 1</module></module>'
        '<module name="o">2</module>'
    )
    assert prompts.new("<m>in</m><o/> end") == {2: "in", 5: "end"}


def test_text_in_a_prompt_that_goes_backwards(prompts: Prompts) -> None:
    assert prompts.new("<c/> one <a/> two") == {10: "one", 11: "two"}
    assert prompts.new("<z/> one <a/>") == {19: "one"}


def test_texts_follow_each_other_in_one_place(prompts: Prompts) -> None:
    twice = Prompts(
        '<module name="a">1</module><module name="g">g g g g</module><module name="b">2</module>'
    )
    assert twice.new("<a/> x <!-- - --> y <b/> end") == {1: "x", 2: "y", 6: "end"}
    assert twice.new("<a>in</a> out <b/> end") == {1: "in", 2: "out", 6: "end"}


def test_text_between_imports_is_not_dropped(prompts: Prompts) -> None:
    """A silent fault of the paper's prototype."""
    assert prompts.new_text("<a/> one <b/> two <z/> three") == "one two three"


def test_text_that_does_not_fit_moves_what_follows(prompts: Prompts) -> None:
    plan = prompts.plan("<a/> one two three four <b/> five")
    # Of the schema's own text, what comes later is pulled apart from what comes first.
    assert [(m.layout.path, m.layout.start, m.num_tokens) for m in plan.modules] == [
        ("", 0, 1),
        ("a", 1, 2),
        ("b", 7, 1),
    ]
    text = {3: "one", 4: "two", 5: "three", 6: "four", 8: "s", 9: "five"}
    assert prompts.new("<a/> one two three four <b/> five") == text
    root, a, b = (planned.layout for planned in plan.modules)
    assert root.relocation is a.relocation is None
    assert b.relocation is not None
    assert (b.relocation.origin, b.relocation.shift) == (prompts.layout.modules[3].key, 1)


@pytest.mark.parametrize(
    ("prompt", "starts"),
    [
        ("<a/> in <gap/> end", {"a": 1, "gap": 4}),
        ("in <a/> end", {"a": 2}),
        ("<gap/> in <b/> end", {"gap": 3, "b": 7}),
        ("<u/> one two three four <z/> end", {"u": 13, "z": 19}),
        # The second text moves what the first one has moved, and is moved by none.
        ("<gap/> in <b/> one two <c/> end", {"gap": 3, "b": 7, "c": 11}),
        # Backwards: the later text moves the earlier one along.
        ("<b/> in <z/><a/> one two three four <gap/> end", {"b": 10, "z": 22, "a": 1, "gap": 7}),
    ],
)
def test_modules_that_moved(prompts: Prompts, prompt: str, starts: dict[str, int]) -> None:
    plan = prompts.plan(prompt)
    assert {m.layout.path: m.layout.start for m in plan.modules if m.layout.path} == starts
    runs = [run for m in plan.modules for run in m.layout.kept_position_runs]
    runs += [part.run for part in plan.new if part.kind == "text"]
    assert len({p for run in runs for p in range(run.start, run.end)}) == plan.num_tokens


def test_text_moves_a_module_around_it_in_part() -> None:
    prompts = Prompts(
        '<module name="a">1 <module name="g">2</module> 3</module> end <module name="b">4</module>'
    )
    plan = prompts.plan("<a>one two</a><b/> x")
    assert prompts.new("<a>one two</a><b/> x") == {3: "one", 4: "two", 7: "x"}
    assert [(m.layout.path, m.layout.start, m.num_tokens) for m in plan.modules] == [
        ("", 0, 1),
        ("a", 0, 2),
        ("b", 6, 1),
    ]


def test_an_anchored_module_is_moved_as_it_was_encoded_at_its_place() -> None:
    prompts = Prompts('r r <module name="a" encode="anchored">1 2</module>')
    plan = prompts.plan("in <a/> end")
    assert prompts.new("in <a/> end") == {2: "in", 5: "end"}
    stays, moved = prompts.layout.modules[1], plan.modules[1].layout
    assert (moved.policy.encode, moved.context, moved.start) == ("anchored", stays.context, 3)
    assert (moved.position_runs, moved.encoded_runs) == ((Run(3, 2),), (Run(2, 2),))
    packed = unpack_plan(plan.packed, num_prompt_tokens=plan.num_tokens)
    assert moved.relocation == Relocation(moved.key, stays.key, 1)
    assert {module.key: module.recipe for module in packed.modules}[stays.key] == stays.packed
    assert prompts.plan("<a/> end").modules[1].layout is stays


def test_parameters_move_with_their_module() -> None:
    prompts = Prompts(
        '<module name="a">1</module><module name="b"><param name="p" len="4"/></module>'
        '<module name="c">2</module>'
    )
    assert prompts.new("<a/> no <b p='x'/> end") == {1: "no", 2: "x", 6: "end"}
    assert prompts.new("<a/><b p='x'/> one") == {1: "x", 5: "one"}


def test_all_texts_are_tokenised_in_one_call() -> None:
    prompts = Prompts('<module name="m"><param name="p" len="2"/></module>')
    prompts.plan("<m p='x'/><user>two</user>")  # Reads the template.
    prompts.words.calls.clear()
    prompts.plan("<m p='x y'/> one <user>two</user>")
    assert len(prompts.words.calls) == 1


def test_text_that_cannot_fit_is_refused_before_it_is_tokenised() -> None:
    words = WordTokenizer(CHATML)
    words.max_chars_per_token = 10  # type: ignore[attr-defined]
    prompts = Prompts('<module name="m">a <param name="p" len="2"/></module>', tokenizer=words)
    num_calls = len(words.calls)
    error = prompts.refused('<m p="1"/>' + "x" * 10_001)
    assert "10001 characters of new text, more than the model's 1000 tokens" in error.message
    error = prompts.refused(f'<m p="{"x" * 21}"/>')
    assert "argument `p` has 21 characters, more than the 2 tokens" in error.message
    assert len(words.calls) == num_calls
    with pytest.raises(PMLError, match="a text of 10001 characters is too long"):
        Prompts("y" * 10_001, tokenizer=words)


def test_compact_text_never_changes_places_with_modules() -> None:
    nested = '<module name="p">p</module><module name="q">q</module>'
    compact = Prompts(
        f'<module name="x">x {nested}</module><module name="y">y</module>'
        '<module name="z">z</module>',
        'layout="compact"',
    )
    assert compact.new("<x><q/><p/></x> one <y/> two <z/>") == {3: "one", 5: "two", 6: "z"}
    assert compact.new("<q/><p/> one <y/> two <z/>") == {3: "one", 5: "two", 6: "z"}
    error = compact.refused("<x><q/></x><y/> one <p/> two <z/>")
    column(error, "<p/>")
    assert error.message == "`y` stands between `x` and `x/p`, which lies within it"
