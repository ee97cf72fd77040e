"""Schemas that break a rule: the message, the place and the caret of each mistake."""

import pytest

from tests.pml.marked import assert_refused
from vllm_promptcache.pml import parse_schema
from vllm_promptcache.policies import REPAIR_HINT

NAME = "a name begins with a letter or `_`; then letters, digits, `_`, `.` and `-`"
BODY = "`<module>`, `<union>`, `<param>`, `<parameter>`, `<system>`, `<user>`, `<assistant>`"
NUMBER = 'write digits only, such as "8"'

ROOTS = {
    "root-is-prompt": ('▲<prompt schema="s"/>', "the root is `<prompt>`, not `<schema>`", ""),
    "root-misspelt": (
        "▲<shema/>",
        "the root is `<shema>`, not `<schema>`",
        "did you mean `schema`?",
    ),
    "no-name": ("▲<schema></schema>", "`<schema>` has no `name`", 'write `<schema name="...">`'),
    "bad-name": ('<schema name="▲1st"/>', "`1st` is not a name", NAME),
    "empty-name": ('<schema name="▲"/>', "`` is not a name", NAME),
    "unknown-attribute": (
        '<schema name="s" ▲privat="true"/>',
        "`<schema>` has no attribute `privat`",
        "did you mean `private`?",
    ),
    "bad-boolean": (
        '<schema name="s" private="▲yes"/>',
        "`yes` is no value of `private`",
        "write `true` or `false`",
    ),
    "bad-layout": (
        '<schema name="s" layout="▲dense"/>',
        "`dense` is no value of `layout`",
        "write `schema` or `compact`",
    ),
    "bad-encode": (
        '<schema name="s" encode="▲alone"/>',
        "`alone` is no value of `encode`",
        "write `isolated` or `anchored` or `primed` or `exact`",
    ),
    "namespace": (
        '<schema name="s" ▲xmlns="urn:x"/>',
        "`<schema>` has no attribute `xmlns`",
        "it takes `name`, `encode`, `repair`, `layout`, `order`, `private`, `pin`, `ttl`",
    ),
}
MODULES = {
    "no-name": ("▲<module/>", "`<module>` has no `name`", 'write `<module name="...">`'),
    "bad-name": ('<module name="▲a/b"/>', "`a/b` is not a name", NAME),
    "non-ascii-name": ('<module name="▲é"/>', "`é` is not a name", NAME),
    "reserved-name": (
        '<module name="▲user"/>',
        "a module may not be named `user`",
        "`<user>` has a meaning of its own; choose another name",
    ),
    "unknown-attribute": (
        '<module name="a" ▲length="3"/>',
        "`<module>` has no attribute `length`",
        "it takes `name`, `encode`, `repair`, `src`, `cache`, `pin`, `ttl`",
    ),
    "exact-module": (
        '<module name="a" encode="▲exact"/>',
        "`exact` is no value of `encode`",
        "write `isolated` or `anchored` or `primed`",
    ),
    "bad-repair": ('<module name="a" repair="▲head"/>', "`head` is no `repair`", REPAIR_HINT),
    "unknown-repair": (
        '<module name="a" repair="▲spread:15"/>',
        "`spread:15` is no `repair`",
        REPAIR_HINT,
    ),
    "repair-share": (
        '<module name="a" repair="▲query:101"/>',
        "`query:101` is no `repair`",
        REPAIR_HINT,
    ),
    "bad-ttl": (
        '<module name="a" pin="true" ttl="▲1 h"/>',
        "`ttl` is no duration",
        'write a number and one of `s`, `m`, `h`, `d`, such as "90s" or "1h"',
    ),
    "ttl-without-pin": (
        '<module name="a" ttl="▲1h"/>',
        "`ttl` goes with a pin",
        'write `pin="true"` as well',
    ),
    "bad-cache": (
        '<module name="a" cache="▲no"/>',
        "`no` is no value of `cache`",
        "write `true` or `false`",
    ),
    "unknown-element": ("▲<modul/>", "unknown element `<modul>`", "did you mean `module`?"),
    "nested-schema": (
        '▲<schema name="t"/>',
        "`<schema>` may not stand in `<schema>`",
        f"`<schema>` may hold {BODY}, `<primer>`, `<scaffold>`",
    ),
    "role-attribute": (
        '<user ▲name="me"/>',
        "`<user>` has no attribute `name`",
        "it takes no attributes",
    ),
    "duplicate": (
        '<module name="a"/>\n▲<module name="a"/>',
        "module `a` is defined twice",
        "rename it; the first one is at 2:1",
    ),
    "duplicate-across-unions": (
        '<union><module name="a"/></union><union>▲<module name="a"/></union>',
        "module `a` is defined twice",
        "rename it; the first one is at 2:8",
    ),
    "duplicate-across-roles": (
        '<user><module name="a"/></user><system>▲<module name="a"/></system>',
        "module `a` is defined twice",
        "rename it; the first one is at 2:7",
    ),
    "duplicate-in-module": (
        '<module name="a"><module name="b"/>▲<module name="b"/></module>',
        "module `b` is defined twice",
        "rename it; the first one is at 2:18",
    ),
}
PARAMS = {
    "outside-module": (
        '▲<param name="p" len="1"/>',
        "parameter `p` is outside of a module",
        "put it inside a module",
    ),
    "outside-module-in-role": (
        '<user>▲<param name="p" len="1"/></user>',
        "parameter `p` is outside of a module",
        "put it inside a module",
    ),
    "no-name": (
        '<module name="m">▲<param len="1"/></module>',
        "`<param>` has no `name`",
        'write `<param name="...">`',
    ),
    "no-len": (
        '<module name="m">▲<param name="p"/></module>',
        "`<param>` has no `len`",
        'write `<param len="...">`',
    ),
    "len-zero": (
        '<module name="m"><param name="p" len="▲0"/></module>',
        "`len` is not a positive whole number",
        NUMBER,
    ),
    "len-signed": (
        '<module name="m"><param name="p" len="▲+8"/></module>',
        "`len` is not a positive whole number",
        NUMBER,
    ),
    "len-not-ascii": (
        '<module name="m"><param name="p" len="▲٣"/></module>',
        "`len` is not a positive whole number",
        NUMBER,
    ),
    "len-fraction": (
        '<module name="m"><parameter name="p" length="▲1.5"/></module>',
        "`length` is not a positive whole number",
        NUMBER,
    ),
    "len-too-large": (
        '<module name="m"><param name="p" len="▲1000001"/></module>',
        "`len` is more than 1000000",
        "",
    ),
    "len-twice": (
        '<module name="m"><param name="p" len="1" ▲length="1"/></module>',
        "`length` is another spelling of `len`",
        "leave one out",
    ),
    "placeholder-twice": (
        '<module name="m"><param name="p" len="1" placeholder="a" ▲scaffold="a"/></module>',
        "`scaffold` is another spelling of `placeholder`",
        "leave one out",
    ),
    "reserved-name": (
        '<module name="m"><param name="▲xmlish" len="1"/></module>',
        "a parameter may not be named `xmlish`",
        "names that begin with `xml` are reserved",
    ),
    "bad-name": (
        '<module name="m"><param name="▲a b" len="1"/></module>',
        "`a b` is not a name",
        NAME,
    ),
    "duplicate": (
        '<module name="m"><param name="p" len="1"/>▲<param name="p" len="2"/></module>',
        "parameter `p` is defined twice",
        "rename it; the first one is at 2:18",
    ),
    "duplicate-in-role": (
        '<module name="m"><user><param name="p" len="1"/></user>'
        '▲<param name="p" len="2"/></module>',
        "parameter `p` is defined twice",
        "rename it; the first one is at 2:24",
    ),
    "with-text": (
        '<module name="m"><param name="p" len="1">▲text</param></module>',
        "text inside `<param>`",
        "`<param>` may hold nothing",
    ),
    "with-module": (
        '<module name="m"><param name="p" len="1">▲<module name="n"/></param></module>',
        "`<module>` may not stand in `<param>`",
        "`<param>` may hold nothing",
    ),
}
UNIONS = {
    "empty": ("▲<union> </union>", "a union without a module", "put one into it"),
    "text": (
        '<union>\n  ▲text <module name="a"/></union>',
        "text inside `<union>`",
        "`<union>` may hold `<module>`",
    ),
    "cdata": (
        '<union>▲<![CDATA[x]]><module name="a"/></union>',
        "text inside `<union>`",
        "`<union>` may hold `<module>`",
    ),
    "role": (
        "<union>▲<user/></union>",
        "`<user>` may not stand in `<union>`",
        "`<union>` may hold `<module>`",
    ),
    "nested-union": (
        "<union>▲<union/></union>",
        "`<union>` may not stand in `<union>`",
        "`<union>` may hold `<module>`",
    ),
    "unknown-default": (
        '▲<union default="miam"><module name="miami"/></union>',
        "the union's default `miam` is not one of its modules",
        "did you mean `miami`?",
    ),
    "unknown-scaffold": (
        '▲<union scaffold="paris"><module name="miami"/></union>',
        "the union's default `paris` is not one of its modules",
        "",
    ),
    "default-twice": (
        '<union default="a" ▲scaffold="a"><module name="a"/></union>',
        "`scaffold` is another spelling of `default`",
        "leave one out",
    ),
}
ROLES_AND_SCAFFOLDS = {
    "role-in-role": (
        "<user>▲<system/></user>",
        "role `<system>` inside a role",
        "close the outer role first",
    ),
    "role-in-module-in-role": (
        '<user><module name="a">▲<user/></module></user>',
        "role `<user>` inside a role",
        "close the outer role first",
    ),
    "role-in-union-in-role": (
        '<user><union><module name="a">▲<user/></module></union></user>',
        "role `<user>` inside a role",
        "close the outer role first",
    ),
    "no-modules": (
        "▲<scaffold/>",
        "`<scaffold>` has no `modules`",
        'write `<scaffold modules="...">`',
    ),
    "one-module": (
        '<module name="a"/>▲<scaffold modules=" a "/>',
        "a scaffold needs at least two modules",
        "list their paths in `modules`",
    ),
    "duplicate": (
        '<module name="a"/>▲<scaffold modules="a a"/>',
        "the scaffold names `a` twice",
        "leave one out",
    ),
    "unknown-path": (
        '<module name="a"><module name="inner"/></module>▲<scaffold modules="a a/iner"/>',
        "the scaffold names `a/iner`, but there is no module `iner`",
        "did you mean `inner`?",
    ),
    "malformed-path": (
        '<module name="a"/>▲<scaffold modules="a a/"/>',
        "the scaffold names `a/`, but there is no module ``",
        "",
    ),
    "inside-module": (
        '<module name="a">▲<scaffold modules="a a"/></module>',
        "`<scaffold>` may not stand in `<module>`",
        f"`<module>` may hold {BODY}, `<primer>`",
    ),
    "with-text": (
        '<scaffold modules="a b">▲text</scaffold>',
        "text inside `<scaffold>`",
        "`<scaffold>` may hold nothing",
    ),
}
PRIMERS = {
    "empty": (
        "▲<primer> \n </primer>",
        "a primer without text",
        'write some, or `<primer from="modules"/>`',
    ),
    "unknown-origin": (
        '<primer from="▲files"/>',
        "`files` is no value of `from`",
        "write `modules`",
    ),
    "unknown-attribute": (
        '<primer ▲src="a.txt">text</primer>',
        "`<primer>` has no attribute `src`",
        "it takes `from`",
    ),
    "text-and-origin": (
        '▲<primer from="modules">text</primer>',
        "a primer with `from` may have no text of its own",
        "leave out one of the two",
    ),
    "second": (
        "<primer>one</primer>\n<module name='a'/>▲<primer>two</primer>",
        "a second primer",
        "leave one out; the first one is at 2:1",
    ),
    "second-in-module": (
        "<module name='a'><primer>one</primer>▲<primer from='modules'/></module>",
        "a second primer",
        "leave one out; the first one is at 2:18",
    ),
    "with-module": (
        '<primer>text ▲<module name="a"/></primer>',
        "`<module>` may not stand in `<primer>`",
        "`<primer>` may hold text",
    ),
    "in-role": (
        "<user>▲<primer>text</primer></user>",
        "`<primer>` may not stand in `<user>`",
        f"`<user>` may hold {BODY}",
    ),
    "in-union": (
        "<union>▲<primer>text</primer><module name='a'/></union>",
        "`<primer>` may not stand in `<union>`",
        "`<union>` may hold `<module>`",
    ),
    "name-of-a-module": (
        '<module name="▲primer"/>',
        "a module may not be named `primer`",
        "`<primer>` has a meaning of its own; choose another name",
    ),
}
CONTENTS = {
    f"{group}-{name}": case
    for group, cases in {
        "module": MODULES,
        "param": PARAMS,
        "union": UNIONS,
        "primer": PRIMERS,
        "other": ROLES_AND_SCAFFOLDS,
    }.items()
    for name, case in cases.items()
}


@pytest.mark.parametrize(("marked", "message", "hint"), ROOTS.values(), ids=ROOTS)
def test_bad_root(marked: str, message: str, hint: str) -> None:
    assert_refused(parse_schema, marked, message, hint)


@pytest.mark.parametrize(("content", "message", "hint"), CONTENTS.values(), ids=CONTENTS)
def test_bad_content(content: str, message: str, hint: str) -> None:
    assert_refused(parse_schema, f'<schema name="s">\n{content}\n</schema>', message, hint)
