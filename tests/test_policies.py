"""Policies and their names."""

from __future__ import annotations

import pytest

from vllm_promptcache.config import PromptModulesConfig
from vllm_promptcache.policies import DEFAULT_POLICY, ENCODE_NAMES, EXACT, NO_REPAIR, Policy, Repair

REPAIRS = {"none": NO_REPAIR, "head:16": Repair("head", 16), "query:100": Repair("query", 100)}


@pytest.mark.parametrize("name", REPAIRS)
def test_repairs_are_read_and_named(name: str) -> None:
    assert Repair.parse(name) == REPAIRS[name]
    assert str(REPAIRS[name]) == name


@pytest.mark.parametrize("name", ["", "head", "head:0", "head:01", "query:101", "tail:16", "x"])
def test_other_names_are_no_repairs(name: str) -> None:
    assert Repair.parse(name) is None


@pytest.mark.parametrize("encode", ENCODE_NAMES)
@pytest.mark.parametrize("repair", REPAIRS)
def test_policies_are_read_and_named(encode: str, repair: str) -> None:
    name = encode if repair == "none" else f"{encode}+{repair}"
    policy = Policy.parse(name)
    if encode == "exact" and repair != "none":
        assert policy is None
    else:
        assert policy == Policy(encode, REPAIRS[repair])  # type: ignore[arg-type]
        assert str(policy) == name


@pytest.mark.parametrize("name", ["", "fast", "isolated+", "+none", "exact+none", "primed+tail:1"])
def test_other_names_are_no_policies(name: str) -> None:
    assert Policy.parse(name) is None


def test_what_is_not_said_stays() -> None:
    policy = Policy("anchored", Repair("head", 2))
    assert policy.changed(None, None) == policy
    assert policy.changed("primed", None) == Policy("primed", Repair("head", 2))
    assert policy.changed(None, NO_REPAIR) == Policy("anchored")


def test_an_engine_has_the_default() -> None:
    assert PromptModulesConfig().policy == DEFAULT_POLICY
    assert PromptModulesConfig(encode="exact", repair="none").policy == EXACT
