"""Contenders, and how they are written in PML."""

from __future__ import annotations

import pytest

from tests.quality.evaluate.rows import row
from vllm_promptcache.errors import ClientError
from vllm_promptcache.pml import parse_prompt, parse_schema
from vllm_promptcache.policies import Policy, Repair
from vllm_promptcache.quality.evaluate.contenders import (
    PLAIN,
    Contender,
    read_contender,
    read_contenders,
)
from vllm_promptcache.quality.evaluate.prompts import Writer

ROLES, TEXT = Writer(has_roles=True), Writer(has_roles=False)
TINY = row(docs=["a < b", "c"], question="Is b > a?")


def test_plain_comes_first_and_none_comes_twice() -> None:
    contenders = read_contenders("isolated+head:16, exact,plain,exact")
    assert [contender.name for contender in contenders] == ["plain", "isolated+head:16", "exact"]
    assert contenders[1] == Contender.of(Policy("isolated", Repair("head", 16)))
    assert [contender.reuse for contender in contenders] == [False, True, True]


def test_a_contender_has_the_name_of_its_policy() -> None:
    for policy in (Policy("exact"), Policy("primed", Repair("query", 15))):
        assert Contender.of(policy).name == str(policy)
        assert read_contender(str(policy)) == Contender.of(policy)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fast", "unknown policy 'fast'; choose from plain, isolated, anchored, primed, exact"),
        ("", "unknown policy ''"),
        ("plain+head:1", "policy 'plain\\+head:1': a plain prefill leaves nothing"),
        ("isolated+", "policy 'isolated\\+': '' is no way to repair"),
        ('isolated+"', "is no way to repair"),
        ("isolated+query:0.15", "is no way to repair"),
    ],
)
def test_other_names_are_errors(name: str, message: str) -> None:
    with pytest.raises(ClientError, match=message):
        read_contender(name)


def test_a_schema_has_a_module_for_each_document() -> None:
    pml = ROLES.schema(TINY, Contender(PLAIN))
    assert pml.startswith('<schema name="documents-any"><system xml:space="preserve">Answer the ')
    assert pml.endswith(
        'around them.\n\n<module name="d0">Document 1:\na &lt; b\n\n</module>'
        '<module name="d1">Document 2:\nc\n\n</module></system></schema>'
    )
    parse_schema(pml)


@pytest.mark.parametrize("name", ["isolated", "anchored"])
def test_the_schema_says_how_modules_are_encoded(name: str) -> None:
    pml = ROLES.schema(TINY, read_contender(f"{name}+head:8"))
    assert pml.startswith(f'<schema name="documents-{name}" encode="{name}"><system ')
    assert parse_schema(pml).encode == name


def test_a_scaffold_has_all_documents() -> None:
    pml = ROLES.schema(TINY, read_contender("scaffold"))
    assert pml.startswith('<schema name="documents-scaffold"><system ')
    assert pml.endswith('</system><scaffold modules="d0 d1"/></schema>')
    assert len(parse_schema(pml).scaffolds) == 1


def test_a_prompt_imports_all_documents_and_asks() -> None:
    pml = ROLES.prompt(TINY, Contender(PLAIN))
    assert pml == (
        '<prompt schema="documents-any" repair="none"><d0/><d1/>'
        '<user xml:space="preserve">Is b &gt; a?</user></prompt>'
    )
    parse_prompt(pml)


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("exact", '<prompt schema="documents-any" encode="exact" repair="none"><d0/>'),
        ("default", '<prompt schema="documents-any"><d0/>'),
        ("default+query:15", '<prompt schema="documents-any" repair="query:15"><d0/>'),
        ("isolated+head:16", '<prompt schema="documents-isolated" repair="head:16"><d0/>'),
        ("scaffold", '<prompt schema="documents-scaffold" repair="none"><d0/>'),
        ("anchored", '<prompt schema="documents-anchored" repair="none"><d0/>'),
        ("anchored+query:15", '<prompt schema="documents-anchored" repair="query:15"><d0/>'),
    ],
)
def test_the_prompt_says_the_rest(name: str, head: str) -> None:
    assert ROLES.prompt(TINY, read_contender(name)).startswith(head)


def test_without_a_chat_template_there_are_no_roles() -> None:
    schema, prompt = TEXT.schema(TINY, Contender(PLAIN)), TEXT.prompt(TINY, Contender(PLAIN))
    assert schema.startswith('<schema name="documents-any" xml:space="preserve">Answer the ')
    assert prompt == (
        '<prompt schema="documents-any" repair="none" xml:space="preserve"><d0/><d1/>'
        "Is b &gt; a?\nAnswer:</prompt>"
    )
    parse_schema(schema)
    parse_prompt(prompt)


def test_a_metric_has_its_own_words() -> None:
    summary = row(metric="rougeL", question="")
    assert "Summarize the documents" in ROLES.schema(summary, Contender(PLAIN))
    assert ">Write the summary.</user>" in ROLES.prompt(summary, Contender(PLAIN))
    assert ">Paragraph 2:\n" in ROLES.schema(row(metric="accuracy"), Contender(PLAIN))
