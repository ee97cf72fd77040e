"""Where modules, unions and parameters lie (paper, section 3.3)."""

from __future__ import annotations

from tests.layout.compiling import Compiler, by_path, positions
from tests.layout.word_tokenizer import WordTokenizer
from vllm_promptcache.layout import ParameterSlot, UnionLayout
from vllm_promptcache.sequence.runs import Run

NESTED = """zero one <module name="a">two <module name="b">three four</module> five</module>
    six <module name="c">seven</module>"""


def test_modules_follow_each_other_in_document_order() -> None:
    compiler = Compiler()
    layout = compiler.compile(NESTED)
    assert [module.path for module in layout.modules] == ["", "a", "a/b", "c"]
    assert [module.parent for module in layout.modules] == [None, 0, 1, 0]
    assert [(module.start, module.end) for module in layout.modules] == [
        (0, 8),
        (2, 6),
        (3, 5),
        (7, 8),
    ]
    assert layout.num_tokens == layout.num_kept_tokens == 8


def test_nested_modules_are_holes_in_own_tokens() -> None:
    compiler = Compiler()
    modules = by_path(compiler.compile(NESTED))
    assert compiler.placed(modules[""]) == {0: "zero", 1: "one", 6: "six"}
    assert compiler.placed(modules["a"]) == {2: "two", 5: "five"}
    assert modules["a"].position_runs == (Run(2, 1), Run(5, 1))
    assert modules["a"].kept_runs == (Run(0, 2),)
    assert compiler.placed(modules["a/b"]) == {3: "three", 4: "four"}


def test_descendants_and_ancestors() -> None:
    layout = Compiler().compile(NESTED)
    root, a, b, c = layout.modules
    assert layout.descendants(root) == (a, b, c)
    assert layout.descendants(a) == (b,)
    assert layout.ancestors(b) == [root, a]


def test_members_of_a_union_start_together_and_the_longest_counts() -> None:
    layout = Compiler().compile(
        """x <union default="q"><module name="p">one two three</module>
        <module name="q">one <union><module name="r">two</module></union></module></union> y"""
    )
    modules = by_path(layout)
    assert (modules["p"].start, modules["p"].end) == (1, 4)
    assert (modules["q"].start, modules["q"].end) == (1, 3)
    assert modules["q/r"].start == 2
    assert modules[""].position_runs == (Run(0, 1), Run(4, 1))
    assert layout.unions == (UnionLayout(0, (1, 2), 2), UnionLayout(2, (3,), None))
    assert [module.union for module in layout.modules] == [None, 0, 0, 1]


def test_unions_do_not_appear_in_paths_or_scopes() -> None:
    layout = Compiler().compile(
        """<module name="a"><union><module name="b">x</module></union>
        <user><module name="c">y</module></user></module>"""
    )
    assert layout.children == ({"a": 1}, {"b": 2, "c": 3}, {}, {})
    assert layout.by_name == {"a": [1], "b": [2], "c": [3]}


def test_parameter_reserves_its_length() -> None:
    compiler = Compiler()
    layout = compiler.compile('<module name="m">for <param name="n" len="3"/> days</module>')
    module = layout.modules[1]
    assert module.parameters == {"n": ParameterSlot("n", 1, 3)}
    assert compiler.text(module) == "for <unk> <unk> <unk> days"
    assert module.position_runs == (Run(0, 5),)
    assert module.kept_runs == (Run(0, 1), Run(4, 1))
    assert module.kept_position_runs == (Run(0, 1), Run(4, 1))
    assert compiler.words.text(module.kept_token_ids) == "for days"


def test_placeholder_text_is_cut_or_padded() -> None:
    compiler = Compiler()
    layout = compiler.compile(
        """<module name="m"><param name="cut" len="2" placeholder="three short words"/>
        <param name="padded" len="3" placeholder="one"/></module>"""
    )
    assert compiler.text(layout.modules[1]) == "three short one <unk> <unk>"
    assert layout.modules[1].num_kept_tokens == 0


def test_a_space_stands_in_where_there_is_no_unknown_token() -> None:
    class Spaced(WordTokenizer):
        def ids(self, text: str) -> list[int]:
            return super().ids(text.replace(" ", "<sp>"))

    compiler = Compiler(Spaced(has_unk=False))
    layout = compiler.compile('<module name="m"><param name="n" len="2"/></module>')
    assert compiler.text(layout.modules[1]) == "<sp> <sp>"


def test_bos_comes_once_at_position_zero() -> None:
    compiler = Compiler(WordTokenizer(bos="<s>", adds_bos=True))
    modules = by_path(compiler.compile('<module name="m">one</module> two'))
    assert compiler.placed(modules[""]) == {0: "<s>", 2: "two"}
    assert compiler.placed(modules["m"]) == {1: "one"}


def test_bos_in_the_text_is_not_doubled() -> None:
    compiler = Compiler(WordTokenizer(bos="<s>", adds_bos=True))
    assert compiler.text(compiler.compile("&lt;s> one").root) == "<s> one"


def test_bos_only_where_the_tokenizer_adds_it() -> None:
    compiler = Compiler(WordTokenizer(bos="<s>"))
    assert compiler.text(compiler.compile("one").root) == "one"


def test_all_texts_are_tokenised_in_one_call() -> None:
    compiler = Compiler()
    compiler.compile("one")  # Finds out what BOS is.
    compiler.words.calls.clear()
    # Without primers, which are other texts.
    children = NESTED + '<module name="d"><param name="p" len="2" placeholder="x"/></module>'
    compiler.compile(children, 'encode="isolated"')
    (texts,) = compiler.words.calls
    assert {"zero one ", "three four", " six ", "x"} <= set(texts)


def test_empty_schema_and_modules() -> None:
    layout = Compiler().compile('<module name="a"/>one<module name="b"><module name="c"/></module>')
    assert [(module.start, module.end) for module in layout.modules] == [
        (0, 1),
        (0, 0),
        (1, 1),
        (1, 1),
    ]
    assert [module.is_reusable for module in layout.modules] == [True, False, False, False]
    assert positions(layout.root.position_runs) == [0]
    assert Compiler().compile("").num_tokens == 0
