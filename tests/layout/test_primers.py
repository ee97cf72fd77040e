"""Primed modules: encoded behind a text that stands in for other modules."""

from __future__ import annotations

from tests.layout.compiling import Compiler, by_path, positions
from vllm_promptcache.layout import SchemaLayout
from vllm_promptcache.layout.keys import salted
from vllm_promptcache.layout.primer_form import made_up
from vllm_promptcache.layout.primer_tokens import MAX_PRIMER_LEN, PrimerTokens

PRIMED = 'encode="primed"'
SENTENCES = [[101], [102], [103, 104]]
LENGTH = 4


def compiled(children: str, attributes: str = PRIMED, **options: object) -> SchemaLayout:
    """Compiles a schema with a short primer."""
    compiler = Compiler()
    compiler.tokenizer.primer = PrimerTokens.of(SENTENCES)
    return compiler.compile(children, attributes, **options)


def contexts(layout: SchemaLayout, path: str) -> list[tuple[str, int]]:
    """What a module is encoded behind: paths and numbers of tokens."""
    module = by_path(layout)[path]
    return [(layout.at(span.index).path, span.num_tokens) for span in module.context]


def test_a_primer_fills_the_positions_of_the_modules_before() -> None:
    layout = compiled(
        "r r <module name='a'>1 2 3</module><module name='b'>4</module><module name='c'>5</module>",
    )
    (primer,) = layout.primers
    # It is as long as any of them has room for.
    assert (primer.path, primer.start, primer.num_kept_tokens) == ("(primer)", 2, 4)
    assert contexts(layout, "a") == [("", 2)]
    # There is room for three tokens, but these are no whole sentences.
    assert contexts(layout, "b") == [("", 2), ("(primer)", 2)]
    assert contexts(layout, "c") == [("", 2), ("(primer)", 4)]
    assert by_path(layout)["c"].dependencies == (0, primer.index)


def test_a_primer_ends_where_text_of_the_schema_begins() -> None:
    layout = compiled("<module name='a'>1 2</module> then <module name='b'>3</module>")
    assert contexts(layout, "b") == [("", 1), ("(primer)", 2)]


def test_no_more_is_read_of_a_primer_than_there_is() -> None:
    long = " ".join(["x"] * (LENGTH + 5))
    layout = compiled(f"<module name='a'>{long}</module><module name='b'>1</module>")
    assert contexts(layout, "b") == [("(primer)", LENGTH)]


def test_nested_modules_are_behind_the_primers_of_all_around_them() -> None:
    layout = compiled(
        "r <module name='a'>1</module><module name='b'>2 <module name='c'>3 3</module>"
        "<module name='d'>4</module></module>",
    )
    assert [primer.path for primer in layout.primers] == ["(primer)", "b/(primer)"]
    assert contexts(layout, "b/d") == [("", 1), ("(primer)", 1), ("b", 1), ("b/(primer)", 2)]
    assert contexts(layout, "b/c") == [("", 1), ("(primer)", 1), ("b", 1)]
    inner = layout.primers[1]
    assert [layout.at(span.index).path for span in inner.context] == ["", "(primer)", "b"]


def test_members_of_a_union_stand_where_one_of_them_would() -> None:
    layout = compiled(
        "<module name='a'>1</module>"
        "<union><module name='b'>2</module><module name='c'>3</module></union>",
    )
    assert contexts(layout, "b") == contexts(layout, "c") == [("(primer)", 1)]


def test_without_primed_modules_nothing_is_tokenised_for_them() -> None:
    compiler = Compiler()
    children = "<module name='a'>1</module><module name='b'>2</module>"
    assert compiler.compile(children, 'encode="anchored"').primers == ()
    assert not any(set(made_up(None)) & set(texts) for texts in compiler.words.calls)


def test_a_tokenizer_with_few_words_gets_a_part_of_the_primer() -> None:
    tokenizer = Compiler().tokenizer
    tokenizer.encode = lambda texts: [[0] * 100 for _ in texts]  # type: ignore[method-assign]
    assert tokenizer.primer.num_tokens == MAX_PRIMER_LEN // 100 * 100


def test_a_module_may_say_it_for_itself() -> None:
    layout = compiled(
        "<module name='a'>1</module><module name='b' encode='primed'>2</module>"
        "<module name='c' encode='anchored'>3</module>"
    )
    assert contexts(layout, "b") == [("(primer)", 1)]
    assert contexts(layout, "c") == []


def test_modules_of_a_compact_schema_are_all_behind_the_whole_primer() -> None:
    layout = compiled(
        "r r <module name='a'>1 2 3</module><module name='b'>4</module> end",
        f'{PRIMED} layout="compact"',
    )
    (primer,) = layout.primers
    assert primer.start == 2
    for path in ("a", "b"):
        # Text behind the modules may be anywhere: it is not in front of them.
        assert contexts(layout, path) == [("", 2), ("(primer)", LENGTH)]
        assert by_path(layout)[path].start == 2 + LENGTH
    assert layout.num_tokens == 3


def test_a_compact_module_that_leaves_no_room_has_no_primer() -> None:
    children = "<module name='a'>1 2 3</module>"
    attributes = f'{PRIMED} layout="compact"'
    fits = compiled(children, attributes, max_model_len=LENGTH + 3)
    assert contexts(fits, "a") == [("(primer)", LENGTH)]
    full = compiled(children, attributes, max_model_len=LENGTH + 2)
    assert contexts(full, "a") == []
    assert positions(by_path(full)["a"].position_runs) == [0, 1, 2]


def test_tenants_share_no_primers() -> None:
    children = "<module name='a'>1</module><module name='b'>2</module>"
    layout = compiled(children, f'{PRIMED} private="true"')
    one, other = salted(layout, b"one"), salted(layout, b"other")
    keys = [{m.key for m in (*each.modules, *each.primers)} for each in (layout, one, other)]
    assert not keys[0] & keys[1]
    assert not keys[1] & keys[2]
    again = salted(layout, b"one")
    assert [m.key for m in again.primers] == [m.key for m in one.primers]
