"""What one prompt may ask of the planner and the engine."""

from __future__ import annotations

import pytest

from tests.plan.planning import Prompts, column
from tests.plan.work import num_calls
from vllm_promptcache.errors import PMLError
from vllm_promptcache.plan.budgets import Budgets
from vllm_promptcache.pml import PROMPT_LIMITS, parse_prompt

MODULES = "r1 r2 " + "".join(
    f'<module name="m{i}">a b c d <param name="p" len="1"/> e f g h</module>' for i in range(9)
)


def imports(num: int, between: str = "", end: str = "end") -> str:
    return "".join(f'<m{i} p="x"/>{between}' for i in range(num)) + end


def test_as_many_rows_as_the_engine_takes() -> None:
    prompts = Prompts(MODULES, budgets=Budgets(max_rows=5))
    assert prompts.plan(imports(4)).sequence.num_attention_rows == 5
    error = prompts.refused(imports(5))
    assert error.message == (
        "the prompt takes 6 rows of attention, more than 5: one for each group of new tokens with "
        "modules behind it"
    )
    assert error.hint == 'put arguments and text behind the modules, or write `encode="exact"`'
    column(error, "<prompt")
    exact = f'<prompt schema="s" encode="exact">{imports(5)}</prompt>'
    assert prompts.planner.plan(exact).sequence.num_attention_rows == 1


def test_a_repair_that_takes_too_many_rows_is_left_out_where_the_prompt_does_not_ask() -> None:
    modules = "r1 r2 " + "".join(f'<module name="m{i}">a b c d e</module>' for i in range(9))
    named = "".join(f"<m{i}/>" for i in range(9)) + "end"
    few = Prompts(modules, 'encode="isolated" repair="head:1"', budgets=Budgets(max_rows=5))
    assert few.plan("<m0/><m1/>end").sequence.num_attention_rows == 3
    assert not [new for new in few.plan(named).new if new.kind == "repeated"]
    with pytest.raises(PMLError) as caught:
        few.planner.plan(f'<prompt schema="s" repair="head:1">{named}</prompt>')
    assert "the prompt takes 10 rows of attention, more than 5" in caught.value.message
    assert caught.value.hint == "leave out `repair`, or repair less"
    many = Prompts(modules, 'encode="isolated" repair="head:1"', budgets=Budgets(max_rows=10))
    assert many.plan(named).sequence.num_attention_rows == 10


def test_as_many_imports_as_may_be() -> None:
    prompts = Prompts(MODULES, budgets=Budgets(max_imports=3))
    prompts.plan(imports(3))
    error = prompts.refused(imports(4))
    assert error.message == "more than 3 imports and modules"
    column(error, "<m3")


def test_as_many_texts_as_may_be() -> None:
    prompts = Prompts(MODULES, budgets=Budgets(max_texts=2))
    prompts.plan(imports(3, "t"))
    error = prompts.refused(imports(4, "t"))
    assert error.message == "new text before more than 2 imports"
    assert error.hint == "put the text behind the imports"
    column(error, "<m3")


def test_as_many_bytes_as_may_be() -> None:
    num_bytes = len(Prompts(MODULES).plan(imports(5)).packed)
    Prompts(MODULES, budgets=Budgets(max_bytes=num_bytes)).plan(imports(5))
    prompts = Prompts(MODULES, budgets=Budgets(max_bytes=num_bytes - 1))
    error = prompts.refused(imports(5))
    assert error.message == f"the prompt's plan has {num_bytes} bytes, more than {num_bytes - 1}"


def test_an_engine_of_few_requests_takes_rows_in_several_steps() -> None:
    assert Budgets.of_engine(8).max_rows == Budgets.of_engine(256).max_rows == 256
    assert Budgets.of_engine(1024).max_rows == 1024


@pytest.mark.parametrize(
    ("repeated", "message"),
    [
        ("<u/>", f"more than {PROMPT_LIMITS.max_modules} modules"),
        ("<user>x</user>", f"more than {PROMPT_LIMITS.max_nodes} elements and texts"),
        ("x<!--x-->", f"more than {PROMPT_LIMITS.max_nodes} elements and texts"),
        (" <!--x-->", f"more than {PROMPT_LIMITS.max_nodes} elements and texts"),
        ("<![CDATA[x]]>", f"more than {PROMPT_LIMITS.max_nodes} elements and texts"),
    ],
)
def test_a_document_is_refused_as_soon_as_it_has_too_many_parts(
    repeated: str, message: str
) -> None:
    """20,000 unknown imports were read to the end, and their names looked up."""

    def refuse(num: int) -> None:
        with pytest.raises(PMLError, match=message):
            parse_prompt(f'<prompt schema="s">{repeated * num}</prompt>')

    refuse(5_000)  # Loads the grammar.
    assert num_calls(lambda: refuse(50_000)) < 1.1 * num_calls(lambda: refuse(5_000))
