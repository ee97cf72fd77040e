"""Variants of modules for prompts in which they stand first."""

from __future__ import annotations

import pytest

from tests.layout.compiling import by_path, positions
from tests.layout.test_primers import LENGTH, PRIMED, compiled
from vllm_promptcache.layout import ContextSpan, ModuleLayout, SchemaLayout
from vllm_promptcache.layout.keys import salted
from vllm_promptcache.layout.size import layout_bytes
from vllm_promptcache.policies import Policy
from vllm_promptcache.sequence.codec import unpack_recipe

FLAT = "r r <module name='a'>1 2</module><module name='b'>3</module>"
NESTED = """r r <module name='a'>1</module>
    <module name='b'>2 <module name='c'>3 3</module><module name='d'>4</module></module>"""
COMPACT = f'{PRIMED} layout="compact"'


def first_of(layout: SchemaLayout, path: str) -> ModuleLayout | None:
    """The variant of a module, None if it has none."""
    index = by_path(layout)[path].first
    return None if index is None else layout.at(index)


def contexts(layout: SchemaLayout, path: str) -> list[tuple[ModuleLayout, int]]:
    """What a variant is encoded behind: modules and numbers of tokens."""
    found = first_of(layout, path)
    assert found is not None
    return [(layout.at(span.index), span.num_tokens) for span in found.context]


def test_a_variant_is_behind_the_text_around_it_alone() -> None:
    layout = compiled(FLAT)
    module, variant = by_path(layout)["b"], first_of(layout, "b")
    assert variant is not None
    assert (variant.path, variant.token_ids, variant.first) == ("b", module.token_ids, None)
    assert variant.context == (ContextSpan(0, 2),)
    assert variant.dependencies == (0,)
    assert variant.position_runs == variant.encoded_runs == module.position_runs
    assert variant.policy == Policy("anchored")
    spec = unpack_recipe(variant.packed)
    assert [span.key for span in spec.sequence.spans] == [layout.root.key]
    assert spec.sequence.position_runs == module.position_runs


def test_it_is_what_an_anchored_module_is() -> None:
    variant = first_of(compiled(FLAT), "b")
    anchored = by_path(compiled(FLAT, 'encode="anchored"'))["b"]
    assert variant is not None
    assert (variant.key, variant.packed) == (anchored.key, anchored.packed)


@pytest.mark.parametrize("encode", ["isolated", "anchored", "exact"])
def test_other_policies_have_none(encode: str) -> None:
    layout = compiled(NESTED, f'encode="{encode}"')
    assert layout.firsts == ()
    assert {module.first for module in layout.modules} == {None}


def test_without_a_primer_before_it_a_module_has_none() -> None:
    layout = compiled(FLAT)
    # Nor has the root.
    assert [module.path for module in layout.firsts] == ["b"]
    assert layout.num_indexes == len(layout.modules) + len(layout.primers) + 1
    assert layout.at(layout.num_indexes - 1) is layout.firsts[0]


def test_what_is_never_cached_has_none() -> None:
    layout = compiled("<module name='a'>1 2</module><module name='b' cache='false'>3</module>")
    assert layout.firsts == ()


def test_nested_modules_are_behind_the_variants_around_them() -> None:
    layout = compiled(NESTED)
    assert [module.path for module in layout.firsts] == ["b", "b/c", "b/d"]
    outer = first_of(layout, "b")
    for path in ("b/c", "b/d"):
        assert contexts(layout, path) == [(layout.root, 2), (outer, 1)]
    assert len({module.key for module in (*layout.modules, *layout.primers, *layout.firsts)}) == 10


def test_an_anchored_module_within_a_primed_one_has_one() -> None:
    children = NESTED.replace("name='c'", "name='c' encode='anchored'")
    layout = compiled(children)
    assert contexts(layout, "b/c") == [(layout.root, 2), (first_of(layout, "b"), 1)]


def test_in_a_compact_schema_it_lies_right_behind_the_text_around_it() -> None:
    layout = compiled(NESTED, COMPACT)
    places = {module.path: positions(module.position_runs) for module in layout.firsts}
    assert places == {"a": [2], "b": [2], "b/c": [3, 4], "b/d": [3]}
    assert all(module.encoded_runs == module.position_runs for module in layout.firsts)
    assert all(module.relocation is None for module in layout.firsts)
    assert by_path(layout)["b/c"].start == 3 + 2 * LENGTH


def test_in_a_compact_schema_none_is_behind_one_that_would_have_to_move() -> None:
    children = NESTED.replace("name='c'", "name='c' encode='isolated'").replace(
        "3 3", "3 <module name='e'>5</module>"
    )
    layout = compiled(children, COMPACT)
    # Isolated, `c` is only at a place behind the primers.
    assert [module.path for module in layout.firsts] == ["a", "b", "b/d"]
    # Where nothing is moved, it is as good a context as any.
    assert [m.path for m in compiled(children).firsts] == ["b", "b/c/e", "b/d"]


def test_tenants_share_no_variants() -> None:
    layout = compiled(NESTED, f'{PRIMED} private="true"')
    one, other = salted(layout, b"one"), salted(layout, b"other")
    keys = [{module.key for module in found.firsts} for found in (layout, one, other)]
    assert not keys[0] & keys[1]
    assert not keys[1] & keys[2]
    (span, outer) = unpack_recipe(one.firsts[1].packed).sequence.spans
    assert (span.key, outer.key) == (one.root.key, one.firsts[0].key)


def test_variants_count_in_the_size_of_a_schema() -> None:
    anchored = layout_bytes(compiled(FLAT, 'encode="anchored"'))
    assert layout_bytes(compiled(FLAT)) > anchored + 450
