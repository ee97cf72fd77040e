"""Prompts without markup: the field `prompt_modules` of a request."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any

import pytest

from tests.plan.planning import PaperPrompts, Prompts
from vllm_promptcache.entrypoints.engine_request import plan_if_pml
from vllm_promptcache.entrypoints.request_options import PromptModules, RequestOptions, applied
from vllm_promptcache.errors import FieldError, PlanError
from vllm_promptcache.plan import PromptPlan
from vllm_promptcache.pml import DEFAULT_LIMITS, Import, Role, Text, is_prompt
from vllm_promptcache.policies import Repair

SCHEMA = """\
<module name="x">Text of x. <module name="p">This is p. <param name="n" len="8"/></module>
<module name="q">This is q.</module></module><module name="y">And y. <param name="m" len="4"/>
</module>"""
ARGUMENTS = {"x/p": {"n": '1 < "2"'}, "y": {"m": "a &\r\nb"}}


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    return PaperPrompts(SCHEMA)


@pytest.fixture(scope="module")
def compact() -> Prompts:
    return Prompts(SCHEMA, 'layout="compact"')


def form(**fields: Any) -> PromptModules:
    request = SimpleNamespace(model_extra={"prompt_modules": {"schema": "s"} | fields})
    modules = RequestOptions.of(request).prompt_modules
    assert modules is not None
    return modules


def planned(prompts: Prompts, end: str, **fields: Any) -> PromptPlan:
    return prompts.planner.plan(form(**fields).to_prompt(end))


def refused(prompts: Prompts, **fields: Any) -> FieldError:
    with pytest.raises(FieldError) as caught:
        planned(prompts, "text", **fields)
    return caught.value


@pytest.mark.parametrize("layout", ["prompts", "compact"])
def test_it_is_planned_as_the_document_would_be(
    layout: str, request: pytest.FixtureRequest
) -> None:
    prompts = request.getfixturevalue(layout)
    plan = planned(prompts, "t", imports=["y", "x/q", "x/p"], arguments=ARGUMENTS, text="so ")
    document = """<y m="a &amp; b"/><x><q/><p n='1 &lt; "2"'/></x>so t"""
    assert plan == prompts.plan(document)


def test_it_says_what_the_attributes_of_a_document_say() -> None:
    asked = form(encode="exact", repair="head:2", max_kl=0).to_prompt("t")
    assert (asked.is_exact, asked.repair, asked.max_kl) == (True, Repair("head", 2), 0.0)


@pytest.mark.parametrize("max_kl", [-0.1, float("nan"), float("inf"), "much"])
def test_a_kl_is_a_number_from_0_on(max_kl: object) -> None:
    with pytest.raises(FieldError, match="max_kl"):
        form(max_kl=max_kl)


def test_modules_around_an_import_may_have_arguments() -> None:
    prompts = Prompts(
        '<module name="a">A <param name="n" len="2"/><module name="b">B</module></module>'
    )
    document = prompts.plan('<a n="1"><b/></a> t')
    fields: dict[str, Any] = {"arguments": {"a": {"n": "1"}}}
    assert planned(prompts, " t", imports=["a/b"], **fields) == document
    assert planned(prompts, " t", imports=["a", "a/b"], **fields) == document
    assert planned(prompts, " t", imports=["a/b", "a"], **fields) == document


@pytest.mark.parametrize(
    "text",
    ["page 1\fpage 2", "a\r\nb\rc", "\x00\x1b[0m\ufffe", "  <b> &amp; ]]>\n ", "\ufeffx", "\u2028"],
)
def test_every_character_reaches_the_tokenizer(text: str) -> None:
    prompt = form(imports=["y"], arguments={"y": {"m": text}}, text=text).to_prompt(text)
    (imported, new) = prompt.children
    assert isinstance(imported, Import)
    assert isinstance(new, Text)
    assert imported.arguments[0].value == text
    assert new.text == text + text


def test_its_text_may_be_a_user_message() -> None:
    (role,) = form().to_prompt("x", as_user=True).children
    assert isinstance(role, Role)
    assert (role.role, role.children[0].text) == ("user", "x")  # type: ignore[union-attr]
    (module,) = form(imports=["y"]).to_prompt("", as_user=True).children
    assert isinstance(module, Import)


def test_its_policy() -> None:
    prompt = form(encode="exact", repair="head:16").to_prompt("x")
    assert prompt.is_exact
    assert prompt.repair == Repair("head", 16)
    prompt = form().to_prompt("x")
    assert (prompt.is_exact, prompt.repair) == (False, None)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schema": "t"}, "prompt_modules: there is no schema `t`\nhint: known are `s`"),
        (
            {"imports": ["y", "z"]},
            "prompt_modules.imports[1]: there is no module `z` in schema `s`",
        ),
        (
            {"imports": ["x/pp"]},
            "prompt_modules.imports[0]: there is no module `pp` in `x`\nhint: did you mean `p`?",
        ),
        ({"imports": ["x/user"]}, "prompt_modules.imports[0]: there is no module `user` in `x`"),
        (
            {"imports": ["x/q", "x", "x/q"]},
            "prompt_modules.imports[2]: `x/q` is imported twice\n"
            "hint: the first import is at prompt_modules.imports[0]",
        ),
        (
            {"imports": ["x/p"]},
            "prompt_modules.imports[0]: `x/p` needs an argument for its parameter `n`\n"
            "hint: give it in `prompt_modules.arguments`",
        ),
        (
            {"imports": ["x/p"], "arguments": {"x/p": {"n": "1 2 3 4 5 6 7 8 9"}}},
            'prompt_modules.arguments["x/p"]["n"]: the argument `n` has 9 tokens',
        ),
        (
            {"imports": ["x/p"], "arguments": {"x/p": {"k": "1"}}},
            'prompt_modules.arguments["x/p"]["k"]: `x/p` has no parameter `k`',
        ),
        (
            {"imports": ["x"], "arguments": {"x/q": {"k": "1"}}},
            'prompt_modules.arguments["x/q"]: `x/q` is not imported',
        ),
    ],
)
def test_errors_name_the_field(prompts: Prompts, fields: dict[str, Any], message: str) -> None:
    error = refused(prompts, **fields)
    assert str(error).startswith(message)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_the_order_is_the_one_given(prompts: Prompts, compact: Prompts) -> None:
    fields = {"imports": ["x/q", "y", "x/p"], "arguments": ARGUMENTS}
    plan = planned(prompts, "t", **fields)
    assert [module.layout.path for module in plan.modules] == ["", "x", "x/q", "y", "x/p"]
    error = refused(compact, **fields)
    assert str(error) == (
        "prompt_modules.imports[2]: `y` stands between `x` and `x/p`, which lies within it\n"
        "hint: import what is nested in `x` right behind it"
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"importz": []}, "prompt_modules.importz: Extra inputs"),
        ({"encode": "isolated"}, "prompt_modules.encode: Input should be 'exact'"),
        ({"repair": '1"'}, "prompt_modules.repair: Value error, write `none`"),
        ({"imports": ["a b"]}, "prompt_modules.imports[0]: String should match"),
        ({"schema": 's"', "imports": []}, "prompt_modules.schema: String should match"),
        ({"arguments": {"a": {"x y": "1"}}}, "prompt_modules.arguments.a"),
        ({"imports": ["a/" * 64 + "a"]}, "prompt_modules.imports[0]: String should"),
        ({"imports": ["a"] * 4097}, "prompt_modules.imports: List should have at most 4096"),
        ({"schema": None, "repair": "head:1"}, "prompt_modules: Value error, imports, arguments"),
        ({"schema": None, "imports": ["a"]}, "prompt_modules: Value error, imports, arguments"),
    ],
)
def test_malformed_fields_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(FieldError) as error:
        form(**fields)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("field", [0, "", [], False, "x"])
def test_a_field_that_is_no_object_is_refused(field: object) -> None:
    with pytest.raises(FieldError, match="prompt_modules: Input should be"):
        RequestOptions.of(SimpleNamespace(model_extra={"prompt_modules": field}))


@pytest.mark.parametrize("field", ["text", "argument", "prompt"])
def test_half_a_character_is_refused(field: str) -> None:
    texts = {"text": "", "argument": "", "prompt": ""} | {field: "a\udc00"}
    modules = form(imports=["y"], arguments={"y": {"m": texts["argument"]}}, text=texts["text"])
    with pytest.raises(FieldError, match="prompt_modules: character U\\+DC00 is not allowed"):
        modules.to_prompt(texts["prompt"])


def test_an_empty_prompt_is_refused(prompts: Prompts) -> None:
    front_end: Any = SimpleNamespace(
        planner=prompts.planner,
        is_pml=is_prompt,
        find=lambda name: prompts.planner.schemas.get(name).layout,
    )
    options = RequestOptions(prompt_modules=form())
    refused = pytest.raises(FieldError, match="prompt_modules: an empty prompt\nhint: import")
    with applied(options), refused:
        plan_if_pml(front_end, "")


@pytest.mark.parametrize("field", ["text", "argument", "prompt"])
def test_limits_hold_without_markup(field: str) -> None:
    long = "\u20ac" * (DEFAULT_LIMITS.max_document_bytes // 3)
    texts = {"text": "", "argument": "", "prompt": ""} | {field: long}
    modules = form(imports=["y"], arguments={"y": {"m": texts["argument"]}}, text=texts["text"])
    with pytest.raises(FieldError, match=r"prompt_modules: the prompt has 83886.. bytes, more"):
        modules.to_prompt(texts["prompt"] + "12")


def test_deep_imports_cost_little() -> None:
    deep = "/".join(["a"] * 63)
    modules = PromptModules(
        schema="s",
        imports=[f"b{i}/{deep}" for i in range(4096)],
        arguments={f"b{i}": {"x": "1"} for i in range(4096)},
    )
    # The argument of each one's outermost module brings that one along.
    assert len(modules.to_prompt("").children) == 2 * 4096


def test_beam_search_leaves_plans_behind(prompts: Prompts) -> None:
    request = SimpleNamespace(
        model_extra={"prompt_modules": {"schema": "s", "imports": ["x"]}}, use_beam_search=True
    )
    front_end: Any = SimpleNamespace(
        planner=prompts.planner,
        is_pml=is_prompt,
        find=lambda name: prompts.planner.schemas.get(name).layout,
    )
    with applied(RequestOptions.of(request)), pytest.raises(PlanError, match="beam search"):
        plan_if_pml(front_end, "text")
