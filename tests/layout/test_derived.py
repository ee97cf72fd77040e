"""What is derived of schemas: bounded in bytes, gone with the schema; sizes as measured."""

from __future__ import annotations

import gc
import sys
from typing import Any

import pytest

from tests.layout.word_tokenizer import WordTokenizer
from tests.plan.planning import make_planner
from vllm_promptcache.layout import ModuleLayout
from vllm_promptcache.layout.derived import Derived, DerivedCache
from vllm_promptcache.layout.keys import salted
from vllm_promptcache.layout.size import layout_bytes, salted_bytes, schema_bytes
from vllm_promptcache.plan import Planner
from vllm_promptcache.pml import parse_schema


def test_what_was_used_last_stays() -> None:
    cache = DerivedCache(max_bytes=100)
    one, two, made = cache.open(), cache.open(), []

    def get(derived: Derived, key: str) -> str:
        def make() -> str:
            made.append(key)
            return key

        return derived.get(key, make, lambda value: 40)

    assert [get(one, "a"), get(two, "b"), get(one, "a"), get(two, "c"), get(one, "a")] == [*"abaca"]
    assert made == ["a", "b", "c"]
    assert cache.num_bytes == 80
    get(two, "b")
    assert made == ["a", "b", "c", "b"]
    assert get(one.part(), "a") == "a"
    assert made == [*"abcba"]
    assert get(two, "b") == "b"
    one.close()
    assert cache.num_bytes == 40
    assert get(one, "a") == "a"
    assert cache.num_bytes == 40


def test_what_is_larger_than_all_room_is_made_again() -> None:
    derived = DerivedCache(max_bytes=10).open()
    values = [derived.get("a", object, lambda value: 11) for _ in range(2)]
    assert values[0] is not values[1]


def planner() -> Planner:
    return make_planner(WordTokenizer(), max_model_len=10_000, block_size=4)


@pytest.mark.parametrize(
    ("attributes", "prompt"),
    [
        ("", "<m1/> and <m0/> end"),
        ('layout="compact"', "<m1/><m0/> end"),
        ('encode="exact"', "<m0/><m1/> end"),
        ('private="true"', "<m0/><m1/> end"),
        ('private="true" layout="compact"', "<m1/><m0/> end"),
        ('private="true" encode="exact"', "<m0/><m1/> end"),
    ],
)
@pytest.mark.parametrize("is_replaced", [True, False])
def test_nothing_outlives_its_schema(attributes: str, prompt: str, is_replaced: bool) -> None:
    plans = planner()
    modules = "".join(f'<module name="m{i}">one two three four five</module>' for i in range(2))
    tree = parse_schema(f'<schema name="s" {attributes}>{modules}</schema>')
    num_before = _num_modules()
    plans.schemas.add(tree)
    for salt in "abc":
        plans.plan(f'<prompt schema="s">{prompt}</prompt>', salt=salt)
    assert _num_modules() > num_before
    if is_replaced:
        plans.schemas.add(parse_schema('<schema name="s">other</schema>'))
    else:
        plans.schemas.remove("s")
    assert _num_modules() == num_before + is_replaced


def _num_modules() -> int:
    """Modules that are in memory."""
    gc.collect()
    return sum(type(found) is ModuleLayout for found in gc.get_objects())


def test_copies_for_tenants_are_bounded_in_bytes() -> None:
    plans = planner()
    texts = "".join(f'<module name="m{i}">{"word " * 90}</module>' for i in range(100))
    plans.schemas._derived = cache = DerivedCache(2**20)
    plans.schemas.add(parse_schema(f'<schema name="s" private="true">{texts}</schema>'))
    for number in range(100):
        plans.plan('<prompt schema="s"><m0/> end</prompt>', salt=str(number))
    assert 2**19 < cache.num_bytes <= 2**20


@pytest.mark.parametrize(("num_modules", "num_words"), [(1, 5000), (200, 5), (50, 200)])
def test_sizes_are_as_measured(num_modules: int, num_words: int) -> None:
    plans = planner()
    words = " ".join(map(str, range(300, 300 + num_words)))
    modules = "".join(f'<module name="m{i}">{words}</module>' for i in range(num_modules))
    tree = parse_schema(f'<schema name="s" private="true">{modules}</schema>')
    layout = plans.schemas.add(tree)
    assert plans.schemas.num_bytes == schema_bytes(tree, layout)
    seen: set[int] = set()
    # Ids of this tokenizer are shared, those of others are not.
    measured = _measure(layout, seen) + 28 * num_modules * num_words
    assert layout_bytes(layout) == pytest.approx(measured, rel=0.25)
    assert schema_bytes(tree, layout) == pytest.approx(measured + _measure(tree, seen), rel=0.25)
    tenant = salted(layout, b"salt")
    assert salted_bytes(tenant) == pytest.approx(_measure(tenant, seen), rel=0.25)


def _measure(root: Any, seen: set[int]) -> int:
    """Bytes of all that an object refers to and that was not seen before."""
    stack, num_bytes = [root], 0
    while stack:
        found = stack.pop()
        if id(found) in seen or isinstance(found, type | Derived):
            continue
        seen.add(id(found))
        if not isinstance(found, int):
            num_bytes += sys.getsizeof(found)
            stack += gc.get_referents(found)
    return num_bytes
