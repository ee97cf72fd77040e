"""Encode contexts and module keys."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from tests.layout.compiling import Compiler, by_path
from vllm_promptcache.layout import ContextSpan
from vllm_promptcache.layout.keys import salted
from vllm_promptcache.policies import Policy
from vllm_promptcache.sequence.codec import unpack_recipe
from vllm_promptcache.sequence.runs import Run
from vllm_promptcache.sequence.spans import ModuleSpan, SequencePlan

TREE = """one two <module name="a">three <param name="p" len="2"/> four
    <module name="b">five</module> six</module> seven"""


def contexts(attributes: str = "", children: str = TREE, **options: object) -> dict[str, object]:
    layout = Compiler().compile(children, attributes, **options)
    return {module.path: module.context for module in layout.modules}


def test_anchored_context_is_the_kept_text_of_ancestors_before_the_module() -> None:
    assert contexts('encode="anchored"') == {
        "": (),
        "a": (ContextSpan(0, 2),),
        "a/b": (ContextSpan(0, 2), ContextSpan(1, 2)),
    }


def test_isolated_context_is_empty() -> None:
    assert not any(contexts('encode="isolated"', default_policy=Policy("anchored")).values())


def test_policy_of_module_then_schema_then_default() -> None:
    children = '<module name="a" encode="isolated">x</module><module name="b">y</module>'
    for attributes, default, expected in (
        ("", "isolated", "isolated"),
        ("", "anchored", "anchored"),
        ('encode="anchored"', "isolated", "anchored"),
        ('encode="isolated"', "anchored", "isolated"),
    ):
        layout = Compiler().compile(children, attributes, default_policy=Policy(default))
        assert [module.policy.encode for module in layout.modules] == [
            "isolated",
            "isolated",
            expected,
        ]


def test_a_nested_module_does_not_inherit_the_policy() -> None:
    children = '<module name="a" encode="anchored"><module name="b">y</module></module>'
    layout = Compiler().compile(children, 'encode="isolated"')
    assert layout.modules[2].policy.encode == "isolated"


def test_context_leaves_out_what_is_empty_or_never_cached() -> None:
    children = """<module name="a" cache="false">one <module name="b"><module name="c">two</module>
        </module></module>"""
    assert not any(contexts('encode="anchored"', children).values())


def test_text_behind_an_empty_module_is_not_its_context() -> None:
    children = 'one<module name="a"><module name="b"/></module>two'
    expected = (ContextSpan(0, 1),)
    assert contexts('encode="anchored"', children)["a/b"] == expected


def test_dependencies_come_first() -> None:
    layout = Compiler().compile(TREE, 'encode="anchored"')
    assert [module.dependencies for module in layout.modules] == [(), (0,), (0, 1)]


def test_packed_module_says_how_to_encode_it() -> None:
    layout = Compiler().compile(TREE, 'encode="anchored"')
    root, a, b = layout.modules
    spec = unpack_recipe(a.packed)
    assert spec.sequence == SequencePlan(
        (ModuleSpan(root.key, root.num_kept_tokens, (Run(0, 2),)),), (Run(2, 4), Run(7, 1))
    )
    # The two placeholders: the other tokens are in each prompt that imports it.
    assert spec.token_ids == a.token_ids[1:3]
    assert spec.kept_runs == (Run(0, 1), Run(3, 2))
    assert [span.key for span in unpack_recipe(b.packed).sequence.spans] == [
        root.key,
        a.key,
    ]


def test_modules_that_are_never_stored_are_not_packed() -> None:
    layout = Compiler().compile(
        """<module name="a" cache="false">x</module>
        <module name="b"><param name="p" len="2"/></module>"""
    )
    assert [module.packed for module in layout.modules] == [b"", b"", b""]
    assert not any(module.is_reusable for module in layout.modules)


BASE = '<module name="m">one two <param name="p" len="2"/></module>'


@pytest.mark.parametrize(
    "children",
    [
        BASE.replace('"m"', '"other"'),
        BASE.replace('"p"', '"q"'),
        BASE + "more",
        f"<union>{BASE}<module name='n'>three</module></union>",
    ],
)
def test_key_does_not_depend_on_names_or_other_modules(children: str) -> None:
    compiler = Compiler()
    layout = compiler.compile(children)
    assert layout.modules[1].key == compiler.compile(BASE).modules[1].key


def test_key_is_shared_between_schemas_of_any_name() -> None:
    compiler = Compiler()
    inner = compiler.compile(f'<module name="o"><module name="i"/>{BASE}</module>')
    assert by_path(inner)["o/m"].key == compiler.compile(BASE).modules[1].key


@pytest.mark.parametrize(
    "children",
    [
        BASE.replace("two", "three"),
        BASE.replace('len="2"', 'len="3"'),
        BASE.replace('len="2"', 'len="2" placeholder="x"'),
        "one" + BASE,
        '<module name="m">one two &lt;unk> &lt;unk></module>',
        '<module name="m">one <module name="i">x</module> two <param name="p" len="2"/></module>',
    ],
)
def test_key_depends_on_tokens_positions_and_placeholders(children: str) -> None:
    compiler = Compiler()
    assert compiler.compile(children).modules[1].key != compiler.compile(BASE).modules[1].key


def test_key_depends_on_the_context() -> None:
    compiler = Compiler()
    texts = ("one", "two", "three")
    children = [f"{text} {BASE} {text}" for text in texts]
    isolated = {compiler.compile(child, 'encode="isolated"').modules[1].key for child in children}
    anchored = {compiler.compile(child, 'encode="anchored"').modules[1].key for child in children}
    assert len(isolated) == 1
    assert len(anchored) == len(texts)
    assert not isolated & anchored


def test_a_private_schema_has_keys_of_its_own_for_each_tenant() -> None:
    compiler = Compiler()
    private = compiler.compile(BASE, 'private="true"')
    layouts = [
        compiler.compile(BASE),
        private,
        salted(private, b"x"),
        salted(private, b"y"),
    ]
    assert len({layout.modules[1].key for layout in layouts}) == len(layouts)
    again = [asdict(module) for module in salted(private, b"x").modules]
    assert again == [asdict(module) for module in layouts[2].modules]
    for layout in layouts:
        module = layout.modules[1]
        assert unpack_recipe(module.packed).sequence.position_runs == module.position_runs
