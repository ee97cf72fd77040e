"""Prompts that break a rule without their schema being known."""

import pytest

from tests.pml.marked import assert_refused
from vllm_promptcache.pml import parse_prompt
from vllm_promptcache.policies import REPAIR_HINT

NAME = "a name begins with a letter or `_`; then letters, digits, `_`, `.` and `-`"
EMPTY = ("an empty prompt", "import a module or write some text")
ROLE = ("role `<user>` inside a role", "close the outer role first")

PROMPTS = {
    "root-is-schema": ('▲<schema name="s"/>', "the root is `<schema>`, not `<prompt>`", ""),
    "no-schema": (
        "▲<prompt>hello</prompt>",
        "`<prompt>` has no `schema`",
        'write `<prompt schema="...">`, or put text that prompts share into `<module>`',
    ),
    "bad-schema": ('<prompt schema="▲a b">hello</prompt>', "`a b` is not a name", NAME),
    "unknown-attribute": (
        '<prompt ▲shema="s">hello</prompt>',
        "`<prompt>` has no attribute `shema`",
        "did you mean `schema`?",
    ),
    "encode": (
        '<prompt schema="s" encode="▲isolated">hello</prompt>',
        "`isolated` is no value of `encode`",
        "write `exact`",
    ),
    "repair": (
        '<prompt schema="s" repair="▲tail:16">hello</prompt>',
        "`tail:16` is no `repair`",
        REPAIR_HINT,
    ),
    "max-kl": (
        '<prompt schema="s" max-kl="▲-0.1">hello</prompt>',
        "`max-kl` is not a number from 0 on",
        'write digits, such as "0.05"',
    ),
    "empty": ('▲<prompt schema="s"/>', *EMPTY),
    "blank": ('▲<prompt schema="s"> <!-- nothing --> </prompt>', *EMPTY),
    "empty-role": ('▲<prompt schema="s"><user> </user></prompt>', *EMPTY),
    "role-in-role": ('<prompt schema="s"><system>a ▲<user>b</user></system></prompt>', *ROLE),
    "role-in-import-in-role": (
        '<prompt schema="s"><user><a>▲<user>b</user></a></user></prompt>',
        *ROLE,
    ),
    "role-attribute": (
        '<prompt schema="s"><user ▲name="me">b</user></prompt>',
        "`<user>` has no attribute `name`",
        "it takes no attributes",
    ),
    "module": (
        '<prompt schema="s">▲<module name="miami"/></prompt>',
        "a module without text",
        "write its text into it; a module of the schema is imported as `<miami/>`",
    ),
    "nameless-module": (
        "<prompt>▲<module/></prompt>",
        "a module without text",
        "write its text into it",
    ),
    "module-with-elements": (
        "<prompt><module>a ▲<b/></module></prompt>",
        "`<b>` inside a module of a prompt",
        "it may hold text only",
    ),
    "module-attribute": (
        '<prompt><module ▲pin="true">a</module></prompt>',
        "`<module>` has no attribute `pin`",
        "it takes `name`, `encode`, `repair`",
    ),
    "exact-module": (
        '<prompt><module encode="▲exact">a</module></prompt>',
        "`exact` is no value of `encode`",
        "write `isolated` or `anchored` or `primed`",
    ),
    "union": (
        '<prompt schema="s">▲<union/></prompt>',
        "`<union>` may not stand in a prompt",
        "it belongs in a schema",
    ),
    "argument-name": (
        '<prompt schema="s"><a ▲xml:lang="en"/></prompt>',
        "`xml:lang` is not a parameter name",
        NAME,
    ),
}


@pytest.mark.parametrize(("marked", "message", "hint"), PROMPTS.values(), ids=PROMPTS)
def test_bad_prompt(marked: str, message: str, hint: str) -> None:
    assert_refused(parse_prompt, marked, message, hint)
