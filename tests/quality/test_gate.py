"""Schemas that are held to a profile."""

from __future__ import annotations

import logging

import pytest

from tests.layout.templates import CHATML
from tests.layout.word_tokenizer import WordTokenizer
from tests.plan.planning import make_planner
from tests.quality.profiles import measured, profile
from vllm_promptcache.entrypoints.pinning import engine_pins
from vllm_promptcache.entrypoints.schema_info import SchemaInfo
from vllm_promptcache.layout import SchemaLayout
from vllm_promptcache.plan import Explanation, Planner
from vllm_promptcache.pml import Pin, parse_schema
from vllm_promptcache.quality.gate import PolicyGate
from vllm_promptcache.quality.profile import Profile

MODULES = '<module name="a">a1 a2 a3 a4 a5</module><module name="b">b1 b2</module>'
LOST = (
    "policy isolated lost 3.2 points with a KL of 0.125, at most 1 points and 0.05 nats are wanted"
)


def planner(of: Profile) -> Planner:
    return make_planner(
        WordTokenizer(CHATML),
        max_model_len=100,
        block_size=4,
        policy=of.default,
        gate=PolicyGate(of),
    )


def add(attributes: str = "", children: str = MODULES, of: Profile | None = None) -> SchemaLayout:
    schema = parse_schema(f'<schema name="s" {attributes}>{children}</schema>')
    return planner(of or profile()).schemas.add(schema)


def policy(layout: SchemaLayout) -> tuple[str, str | None]:
    info = SchemaInfo.of(layout, 4)
    return info.policy, info.reason


def test_a_schema_without_a_policy_gets_the_default() -> None:
    assert policy(add()) == ("anchored", None)
    head = profile(
        measured=(measured("anchored+head:2"),),
        default="anchored+head:2",
    )
    assert policy(add(of=head)) == ("anchored+head:2", None)
    assert policy(add(of=profile(measured=(), default="exact"))) == ("exact", None)


def test_a_policy_that_has_not_passed_falls_back(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whether it hands anything on to the root depends on whether vLLM was imported.
    logger = logging.getLogger("vllm.vllm_promptcache.plan.schemas")
    monkeypatch.setattr(logger, "level", logging.WARNING)
    monkeypatch.setattr(logger, "propagate", False)
    monkeypatch.setattr(logger, "handlers", [caplog.handler])
    layout = add('encode="isolated"')
    assert policy(layout) == ("exact", LOST)
    assert caplog.messages == [f"Schema s is served exactly: {LOST}"]


@pytest.mark.parametrize(
    ("num_more_rows", "would"), [(1200, "about 1,200 more rows"), (None, "no number of rows")]
)
def test_a_policy_that_rows_do_not_tell_about_falls_back(
    num_more_rows: int | None, would: str
) -> None:
    found = measured("isolated", "undecided", loss=0.5, kl=0.01, num_more_rows=num_more_rows)
    reason = (
        "policy isolated lost 0.5 points with a KL of 0.010, at most 1 points and 0.05 nats are "
        f"wanted, which 24 rows do not tell; {would} would decide"
    )
    of = profile(measured=(found,), default="exact")
    assert policy(add('encode="isolated"', of=of)) == ("exact", reason)


def test_a_policy_that_was_not_measured_falls_back() -> None:
    assert policy(add('repair="head:8"')) == ("exact", "policy anchored+head:8 was not measured")


def test_modules_count_with_their_own_policies() -> None:
    other = '<module name="c" encode="isolated">c1 c2</module>'
    assert policy(add(children=MODULES + other)) == ("exact", LOST)
    repaired = '<module name="d" repair="head:1">c1 c2</module>'
    reason = "policy anchored+head:1 was not measured"
    assert policy(add(children=MODULES + repaired)) == ("exact", reason)
    both = policy(add(children=other + repaired))
    assert both == ("exact", f"{LOST}; {reason}")


def test_modules_whose_states_are_not_kept_do_not_count() -> None:
    uncached = '<module name="c" encode="isolated" cache="false">c1 c2</module>'
    assert policy(add(children=MODULES + uncached)) == ("anchored", None)
    assert policy(add(children="only text")) == ("isolated", None)


def test_a_compact_schema_is_encoded_as_any_other() -> None:
    assert policy(add('layout="compact"')) == ("anchored", None)


@pytest.mark.parametrize(
    ("attributes", "encode"),
    [
        ('max-kl="0.01"', "anchored"),
        ('max-kl="0.009"', "exact"),
        # It was not measured.
        ('max-kl="100" repair="head:1"', "exact"),
        ('repair="head:1"', "anchored"),
    ],
)
def test_a_prompt_may_ask_for_a_kl(attributes: str, encode: str) -> None:
    plans = planner(profile())
    plans.schemas.add(parse_schema(f'<schema name="s">{MODULES}</schema>'))
    assert read_as(plans, attributes) == encode


def test_what_nobody_has_measured_is_within_no_kl() -> None:
    plans = make_planner(WordTokenizer(CHATML), max_model_len=100, block_size=4)
    plans.schemas.add(parse_schema(f'<schema name="s" encode="isolated">{MODULES}</schema>'))
    assert read_as(plans, "") == "isolated"
    assert read_as(plans, 'max-kl="100"') == "exact"


def read_as(plans: Planner, attributes: str) -> str:
    """The policy of a prompt's last module; the first one is exact under some others, too."""
    plan = plans.plan(f"<prompt schema='s' {attributes}><a/><b/> end</prompt>")
    return [module.policy for module in Explanation.of(plan).modules if any(module.reused)][-1]


def test_several_policies_may_pass() -> None:
    of = profile(measured=(measured("isolated"), measured("anchored")))
    children = MODULES + '<module name="c" encode="isolated">c1 c2</module>'
    assert policy(add(children=children, of=of)) == ("anchored, isolated", None)


def test_exact_schemas_pass() -> None:
    assert policy(add('encode="exact"')) == ("exact", None)


@pytest.mark.parametrize("attributes", ["", 'private="true"'])
def test_prompts_of_a_schema_that_fell_back_are_exact(attributes: str) -> None:
    of = profile()
    plans = planner(of)
    plans.schemas.add(
        parse_schema(f'<schema name="s" encode="isolated" {attributes}>{MODULES}</schema>')
    )
    plan = plans.plan("<prompt schema='s'><a/><b/> end</prompt>", salt="tenant")
    assert {module.policy for module in Explanation.of(plan).modules if any(module.reused)} == {
        "exact"
    }
    assert not list(plans.warm_plans("s", salt="tenant"))


@pytest.mark.parametrize("of", [profile(), profile(measured=(), default="exact")])
def test_nothing_of_a_pinned_schema_is_pinned_once_it_is_exact(of: Profile) -> None:
    assert len(engine_pins(add('pin="true"'), 4)) == 2
    attributes = 'pin="true" encode="isolated"' if of.passed else 'pin="true"'
    layout = add(attributes, of=of)
    assert layout.is_exact
    assert engine_pins(layout, 4) == engine_pins(layout, 4, Pin(60)) == []
