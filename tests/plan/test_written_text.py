"""The tokens of a plan, in reading order, read as the schema's and the prompt's text."""

from __future__ import annotations

from typing import Any
from xml.sax.saxutils import escape, quoteattr

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.layout.reading import assert_reads, decoded, knows, tokenizer_of, tokens
from tests.layout.templates import LLAMA3, MISTRAL, PHI3, VICUNA
from tests.layout.tokenizers import FAITHFUL, REFUSED, llama
from tests.plan.planning import make_planner
from vllm_promptcache.errors import UnsupportedError
from vllm_promptcache.plan import Planner, PromptPlan
from vllm_promptcache.plan.prompt_plan import baseline
from vllm_promptcache.pml import parse_schema

PREFIXED = ("llama-legacy", "llama-first", "llama-always", "mistral-v1", "unigram")


def planner_of(tokenizer: Any, children: str, attributes: str = "") -> Planner:
    planner = make_planner(tokenizer, max_model_len=4096, block_size=16)
    planner.schemas.add(parse_schema(f'<schema name="s" {attributes}>{children}</schema>'))
    return planner


def plan_of(tokenizer: Any, schema: str, prompt: str, attributes: str = "") -> PromptPlan:
    planner = planner_of(tokenizer, schema, attributes)
    return planner.plan(f'<prompt schema="s" xml:space="preserve">{prompt}</prompt>')


def read_ids(plan: PromptPlan) -> list[int]:
    """All tokens of a plan in reading order."""
    return [token_id for tokens in baseline(plan).new for token_id in tokens.token_ids]


def without_bos(tokenizer: Any, token_ids: list[int]) -> list[int]:
    return token_ids[token_ids[:1] == [tokenizer.bos_token_id] :]


@pytest.mark.parametrize("kind", PREFIXED)
@pytest.mark.parametrize("attributes", ["", 'layout="compact"', 'encode="primed"'])
def test_nothing_is_put_between_texts(kind: str, attributes: str) -> None:
    tokenizer = FAITHFUL[kind]()
    schema = (
        '<module name="a">$<param name="p" len="6"/>.00 (net<module name="m">to</module>).</module>'
    )
    plan = plan_of(tokenizer, schema, '<a p="45"><m/></a> Why?', attributes)
    token_ids = without_bos(tokenizer, read_ids(plan))
    assert decoded(tokenizer, token_ids) == "$45.00 (netto). Why?"


@pytest.mark.parametrize("kind", PREFIXED)
def test_any_module_may_come_first(kind: str) -> None:
    tokenizer = FAITHFUL[kind]()
    planner = planner_of(
        tokenizer,
        '<module name="a">The note</module><module name="b">book</module>'
        '<module name="c"> to</module>',
    )
    for prompt, text in (
        ("<a/>", "The note"),
        ("<b/>", "book"),
        ("<a/><b/>", "The notebook"),
        ("not<b/>", "notbook"),
        ("<b/>s", "books"),
        ("<b/><c/>", "book to"),
        ("<c/>", " to"),
        (" so<b/>", " sobook"),
    ):
        plan = planner.plan(f'<prompt schema="s" xml:space="preserve">{prompt}</prompt>')
        token_ids = without_bos(tokenizer, read_ids(plan))
        assert decoded(tokenizer, token_ids) == text


@pytest.mark.parametrize("kind", PREFIXED)
def test_first_text_has_the_tokens_of_plain_serving(kind: str) -> None:
    tokenizer = FAITHFUL[kind]()
    plan = plan_of(tokenizer, 'The price is <module name="a">not</module>', "<a/> $45.")
    plain = tokenizer(["The price is not $45."], add_special_tokens=True)["input_ids"][0]
    # The blank before the module's text is a token of its own.
    length = len(tokenizer(["The price is"], add_special_tokens=True)["input_ids"][0])
    assert read_ids(plan)[:length] == plain[:length]


@pytest.mark.parametrize("template", [LLAMA3, MISTRAL, PHI3, VICUNA])
@pytest.mark.parametrize("scheme", ["legacy", "first", "always"])
def test_chat_reads_as_the_template_writes_it(template: str, scheme: str) -> None:
    tokenizer = llama(scheme)
    tokenizer.chat_template = template
    schema = '<user>Is it <module name="a">net</module>to?</user>'
    plan = plan_of(tokenizer, schema, "<a/>")
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Is it netto?"}], tokenize=False, add_generation_prompt=True
    )
    text = rendered.removeprefix(tokenizer.bos_token)
    assert_reads(tokenizer, without_bos(tokenizer, read_ids(plan)), text)
    assert read_ids(plan).count(tokenizer.bos_token_id) == 1


def test_chat_begins_as_in_plain_serving() -> None:
    """Behind a BOS that the template writes, a tokenizer may add a blank or not."""
    for scheme in ("legacy", "first", "always"):
        tokenizer = llama(scheme)
        tokenizer.chat_template = MISTRAL
        plan = plan_of(tokenizer, '<user>The note<module name="a">s</module></user>', "<a/>")
        assert read_ids(plan)[:3] == tokens(tokenizer, "<s>[INST] The note")[:3]


@pytest.mark.parametrize("kind", REFUSED)
def test_schema_is_refused(kind: str) -> None:
    build, reason = REFUSED[kind]
    with pytest.raises(UnsupportedError, match=reason):
        planner_of(build(), '<module name="a">text</module>')


fragments = st.text(st.sampled_from("abnot ETU.,$4\n\t(é中"), max_size=8)


@pytest.mark.parametrize("kind", FAITHFUL)
@given(texts=st.lists(fragments, min_size=7, max_size=7))
@settings(deadline=None, max_examples=25)
def test_random_texts(kind: str, texts: list[str]) -> None:
    tokenizer, _ = tokenizer_of(kind)
    first, before, argument, behind, nested, new, last = texts
    schema = (
        f'{escape(first)}<module name="a">{escape(before)}<param name="p" len="40"/>'
        f'{escape(behind)}<module name="m">{escape(nested)}</module></module>'
    )
    prompt = f"<a p={quoteattr(argument)}><m/></a>{escape(new)}{escape(last)}."
    plan = plan_of(tokenizer, schema, prompt, 'xml:space="preserve"')
    token_ids, written = without_bos(tokenizer, read_ids(plan)), f"{''.join(texts)}."
    assume(knows(tokenizer, token_ids, tokens(tokenizer, written)))
    assert_reads(tokenizer, token_ids, written)
