"""Which modules a prompt imports, and what is refused."""

from __future__ import annotations

import pytest

from tests.plan.planning import PaperPrompts, Prompts, column

TRAVEL = """Plan. <module name="trip">A trip
      <union><module name="miami">to Miami</module>
        <module name="maui">to Maui <module name="surf">and surf</module></module></union>
      <module name="days">of <param name="number" len="2"/> days</module>
    </module>
    <module name="budget">for <param name="sum" len="1"/>
      <module name="notes">Note</module></module>
    <module name="extra">and
      <module name="deep"><module name="notes">more</module></module></module>
"""
PARENT = '<module name="a"><param name="p" len="1"/><module name="b">x</module></module>'


@pytest.fixture(scope="module")
def travel() -> Prompts:
    return PaperPrompts(TRAVEL)


@pytest.mark.parametrize(
    ("prompt", "paths"),
    [
        ("<trip/>", ["trip"]),
        ("<extra/><trip/>", ["extra", "trip"]),
        ("<trip><miami/></trip>", ["trip", "trip/miami"]),
        ("<miami/>", ["trip", "trip/miami"]),
        ("<surf/>", ["trip", "trip/maui", "trip/maui/surf"]),
        ("<trip><surf/></trip>", ["trip", "trip/maui", "trip/maui/surf"]),
        ("<days number='2'/><surf/>", ["trip", "trip/days", "trip/maui", "trip/maui/surf"]),
        # Explicit and implicit imports of an ancestor, in any order.
        ("<trip/><miami/>", ["trip", "trip/miami"]),
        ("<miami/><trip/>", ["trip", "trip/miami"]),
        ("<surf/><trip><maui/></trip>", ["trip", "trip/maui", "trip/maui/surf"]),
        ("<extra><notes/></extra>", ["extra", "extra/deep", "extra/deep/notes"]),
    ],
)
def test_imports(travel: Prompts, prompt: str, paths: list[str]) -> None:
    assert travel.paths(prompt) == ["", *paths]


def test_a_name_in_scope_wins_over_one_that_is_nested() -> None:
    prompts = Prompts(
        """<module name="a"><module name="x">1</module></module><module name="x">2</module>"""
    )
    assert prompts.paths("<x/>") == ["", "x"]
    assert prompts.paths("<a><x/></a>") == ["", "a", "a/x"]


def test_arguments_of_an_explicit_import_count_also_when_it_comes_later() -> None:
    assert Prompts(PARENT).new("<b/><a p='now'/>")[0] == "now"


def test_text_of_a_parent_is_not_lost(travel: Prompts) -> None:
    """A silent fault of the paper's prototype."""
    plan = travel.plan("<surf/> end")
    words = travel.words.text(plan.prompt_token_ids).split()
    assert sorted(words) == sorted(["Plan", ".", "A", "trip", "to", "Maui", "and", "surf", "end"])


def test_unknown_module(travel: Prompts) -> None:
    error = travel.refused("<trip><miamy/></trip>")
    assert error.message == "there is no module `miamy` in `trip`"
    assert error.hint == "did you mean `miami`?"
    column(error, "<miamy/>")
    error = travel.refused("\n<budged sum='1'/>")
    assert error.message == "there is no module `budged` in schema `s`"
    assert error.hint == "did you mean `budget`?"
    assert (error.source_name, error.line, error.column) == ("<prompt>", 2, 1)


def test_a_module_is_not_found_outside_of_its_scope(travel: Prompts) -> None:
    error = travel.refused("<budget sum='1'><miami/></budget>")
    assert error.message == "there is no module `miami` in `budget`"


def test_ambiguous_module(travel: Prompts) -> None:
    error = travel.refused("<notes/>")
    assert error.message == "`notes` is ambiguous: `budget/notes`, `extra/deep/notes`"
    assert error.hint == "spell out the modules around it"
    column(error, "<notes/>")


def test_the_same_module_twice(travel: Prompts) -> None:
    error = travel.refused("<trip/><extra/><trip/>")
    assert error.message == "`trip` is imported twice"
    assert error.hint == "the first import is at 1:20"
    assert error.column == 35
    error = travel.refused("<miami/><trip><miami/></trip>")
    assert error.message == "`trip/miami` is imported twice"


@pytest.mark.parametrize("second", ["<maui/>", "<surf/>", "<maui><surf/></maui>"])
def test_two_members_of_one_union(travel: Prompts, second: str) -> None:
    error = travel.refused(f"<trip><miami/>{second}</trip>")
    assert error.message == (
        "`trip/miami` and `trip/maui` are members of one union, "
        "of which a prompt imports at most one"
    )
    column(error, second)


def test_a_unions_default_member_stands_in() -> None:
    prompts = Prompts(
        """<module name="a"><union default="x"><module name="x">1
        <union default="y"><module name="y">2</module></union></module>
        <module name="z">3</module></union></module>"""
    )
    assert prompts.paths("<a/>") == ["", "a", "a/x", "a/x/y"]
    assert prompts.paths("<z/>") == ["", "a", "a/z"]
    assert prompts.paths("text") == [""]


def test_unknown_argument(travel: Prompts) -> None:
    error = travel.refused("<days number='2' numbr='3'/>")
    assert error.message == "`trip/days` has no parameter `numbr`"
    assert error.hint == "did you mean `number`?"
    column(error, "numbr=")


def test_missing_argument(travel: Prompts) -> None:
    error = travel.refused("<trip><days/></trip>")
    assert error.message == "`trip/days` needs an argument for its parameter `number`"
    assert error.hint == 'write `<days number="...">`'
    column(error, "<days/>")


def test_missing_argument_of_a_module_that_is_imported_with_another() -> None:
    prompts = Prompts(PARENT)
    error = prompts.refused("<b/>")
    assert error.message == "`a` needs an argument for its parameter `p`"
    assert error.hint == 'write `<a p="...">`; `a` is imported along with another module'
    column(error, "<b/>")


def test_argument_longer_than_its_parameter(travel: Prompts) -> None:
    error = travel.refused("<days number='three or four'/>")
    assert error.message == "the argument `number` has 3 tokens, but its parameter takes 2"
    column(error, "number=")


def test_arguments_take_the_first_positions_of_their_parameter(travel: Prompts) -> None:
    start = travel.layout.modules[5].parameters["number"].start
    (number,) = (t for t in travel.plan("<days number='3'/>").new if t.kind == "argument")
    assert (number.owner, number.start) == ("trip/days:number", start)
    assert len(number.token_ids) == 1
    assert not [t for t in travel.plan("<days number=''/>").new if t.kind == "argument"]
