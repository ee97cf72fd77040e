"""Requests that a server must refuse, or answer as if nothing had been tried."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.engine.endpoints import FORM, PROMPT
from vllm_promptcache.entrypoints.engine_request import PLAN_FIELD
from vllm_promptcache.entrypoints.schema_routes import ADMIN_HEADER
from vllm_promptcache.sequence.codec import DETAIL_KEY, PLAN_KEY

ROUTE = "/v1/prompt_schemas"
GOOD_SCHEMA = '<schema name="evil"><module name="m">Some text.</module></schema>'
MEGABYTE = 2**20
NUM_TOKENS = 4
REFUSED = frozenset(range(400, 500))
ANSWERED_OR_REFUSED = REFUSED | {200}

_ENTITIES = "".join(
    f'<!ENTITY {name} "{f"&{of};" * 10}">' for of, name in zip("abcdefgh", "bcdefghi", strict=True)
)
_DTDS = {
    "XML bomb": f'<!DOCTYPE x [<!ENTITY a "lol">{_ENTITIES}]>',
    "external entity": '<!DOCTYPE x [<!ENTITY i SYSTEM "file:///etc/passwd">]>',
}


@dataclass(frozen=True, slots=True)
class Attack:
    """A request.

    Attributes:
        group: What is attacked.
        name: How.
        target: Path of the address, sent as it is.
        body: JSON, or bytes that are sent as they are.
        method: Of HTTP.
        headers: More headers, or others than the keys.
        expected: Statuses that are right.
        keeps_answer: Whether the answer, if there is one, must be that of `PROMPT` alone.
    """

    group: str
    name: str
    target: str
    body: Any = None
    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=dict)
    expected: frozenset[int] = REFUSED
    keeps_answer: bool = False

    def content(self) -> bytes | None:
        """The body as it is sent."""
        if self.body is None or isinstance(self.body, bytes):
            return self.body
        return json.dumps(self.body).encode()


def attacks(model: str) -> Iterator[Attack]:
    """All attacks, one by one, since their bodies are large."""
    for make in (_keys, _markup, _size, _limits, _form, _paths, _plans, _encoding, _bodies):
        yield from make(model)


def _completion(group: str, name: str, model: str, prompt: Any, **more: Any) -> Attack:
    body, options = _split({"model": model, "prompt": prompt, "max_tokens": NUM_TOKENS} | more)
    return Attack(group, f"completions: {name}", "/v1/completions", body, **options)


def _chat(group: str, name: str, model: str, prompt: Any, **more: Any) -> Attack:
    messages = [{"role": "user", "content": prompt}]
    body, options = _split({"model": model, "messages": messages, "max_tokens": NUM_TOKENS} | more)
    return Attack(group, f"chat: {name}", "/v1/chat/completions", body, **options)


def _explain(group: str, name: str, prompt: str, schema: str = "travel") -> Attack:
    return Attack(group, f"explain: {name}", f"{ROUTE}/{schema}/explain", {"prompt": prompt})


def _post(group: str, name: str, text: str, **more: Any) -> Attack:
    body, options = _split({"schema": text} | more)
    return Attack(group, f"POST: {name}", ROUTE, body, **options)


def _put(group: str, name: str, text: str) -> Attack:
    return Attack(group, f"PUT: {name}", f"{ROUTE}/evil", {"schema": text}, "PUT")


def _split(fields: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parts a request's body from what is said of the attack."""
    about = {key: fields.pop(key) for key in ("expected", "keeps_answer") if key in fields}
    return {"temperature": 0} | fields if "model" in fields else fields, about


def _prompt(inner: str) -> str:
    return f'<prompt schema="travel">{inner}</prompt>'


def _schema(inner: str) -> str:
    return f'<schema name="evil">{inner}</schema>'


def _everywhere(group: str, name: str, model: str, prompt: str, schema: str) -> Iterator[Attack]:
    yield _completion(group, name, model, prompt)
    yield _chat(group, name, model, prompt)
    yield _explain(group, name, prompt)
    yield _post(group, name, schema)
    # POST and PUT read a schema alike; a body, each reads for itself.
    if len(schema) > 8 * MEGABYTE:
        yield _put(group, name, schema)


def _keys(model: str) -> Iterator[Attack]:
    """Every route without a key and with a wrong one."""
    prompt = {"model": model, "prompt": PROMPT, "max_tokens": NUM_TOKENS}
    message = {"model": model, "messages": [{"role": "user", "content": PROMPT}]}
    schema = {"schema": GOOD_SCHEMA}
    unauthorized = frozenset({401})
    routes = (
        ("GET", ROUTE, None),
        ("GET", f"{ROUTE}/travel", None),
        ("POST", ROUTE, schema),
        ("PUT", f"{ROUTE}/evil", schema),
        ("DELETE", f"{ROUTE}/travel", None),
        ("POST", f"{ROUTE}/travel/explain", {"prompt": PROMPT}),
        ("POST", "/v1/completions", prompt),
        ("POST", "/v1/chat/completions", message),
    )
    for method, target, body in routes:
        for what, key in (("no", ""), ("wrong", "Bearer wrong"), ("bad", "secret")):
            headers, name = {"Authorization": key}, f"{method} {target}: {what} key"
            yield Attack("keys", name, target, body, method, headers, unauthorized)
    for method, target, body in routes[2:5]:
        for what, key in (("no", ""), ("wrong", "wrong"), ("odd", "admin\xff")):
            headers, name = {ADMIN_HEADER: key}, f"{method} {target}: {what} admin key"
            yield Attack("keys", name, target, body, method, headers, unauthorized)
    for target in (f"/{ROUTE}", "/v1%2fprompt_schemas", "/%761/prompt_schemas", f"/.{ROUTE}"):
        name, headers = f"GET {target}: no key", {"Authorization": ""}
        yield Attack("keys", name, target, None, "GET", headers)
    # vLLM's key guards /v1 only.
    for target, body in (("/tokenize", prompt), ("/invocations", prompt)):
        name, headers = f"POST {target}: no key", {"Authorization": ""}
        yield Attack("keys", name, target, body, "POST", headers, ANSWERED_OR_REFUSED)


def _markup(model: str) -> Iterator[Attack]:
    """Entities, and references to characters."""
    for name, dtd in _DTDS.items():
        yield from _everywhere("markup", name, model, _prompt(dtd + "&i;"), _schema(dtd + "&i;"))
        # Such a prompt is no PML but text, which a schema cannot be.
        prompt, schema = dtd + _prompt("&i;"), dtd + _schema("&i;")
        answered = ANSWERED_OR_REFUSED
        yield _completion("markup", f"{name} ahead", model, prompt, expected=answered)
        yield _explain("markup", f"{name} ahead", prompt)
        yield _post("markup", f"{name} ahead", schema)
    for name, text in (
        ("undefined entity", "&x;"),
        ("reference of 1 MB", f"&#{'9' * MEGABYTE};"),
        ("U+110000", "&#x110000;"),
        ("surrogate by reference", "&#xD800;"),
        ("5 million bare &", "&" * 5_000_000),
    ):
        yield from _everywhere("markup", name, model, _prompt(text), _schema(text))


def _size(model: str) -> Iterator[Attack]:
    """Documents that are deep, wide or long, below and above the limit of 8 MiB."""
    attributes = "".join(f' a{i}="x"' for i in range(400_000))
    for name, text in (
        ("100,000 levels", "<user>" * 100_000 + "</user>" * 100_000),
        ("1,000,000 siblings", "<a/>" * 1_000_000),
        ("1,000,000 roles", "<user/>" * 1_000_000),
        ("900,000 comments", "a<!--x-->" * 900_000),
        ("600,000 CDATA sections", "<![CDATA[x]]>" * 600_000),
        ("400,000 attributes", f"<plan{attributes}/>"),
        ("name of 1 MB", f"<{'n' * MEGABYTE}/>"),
        ("attribute name of 1 MB", f'<plan {"n" * MEGABYTE}="1"/>'),
        ("attribute of 5 MB", f'<plan duration="{"x" * 5 * MEGABYTE}"/>'),
        ("bad tag behind 8 million lines", "\n" * 8_000_000 + "<bad"),
        ("8 MB of words", "word " * 1_600_000),
        ("8 MB of spaces", f"a{' ' * 7_900_000}b"),
        ("8 MB of references", "&lt;" * 2_000_000),
        ("50 MB", "x" * 50 * MEGABYTE),
    ):
        yield from _everywhere("size", name, model, _prompt(text), _schema(text))
    for megabytes in (7, 20):
        name, text = f"unclosed tag of {megabytes} MB", "x" * megabytes * MEGABYTE
        prompt, schema = '<prompt schema="', '<schema name="'
        yield from _everywhere("size", name, model, prompt + text, schema + text)


def _limits(model: str) -> Iterator[Attack]:
    """More than a schema may have, more than the model takes, files, names."""
    many = "".join(f'<module name="m{i}"/>' for i in range(20_001))
    placeholder = f'<param name="p" len="5" placeholder="{"word " * MEGABYTE}"/>'
    for name, inner in (
        ("20,001 modules", many),
        ("5,000 tokens", "word " * 5_000),
        (
            "parameter of 1,000,000 tokens",
            '<module name="m">x<param name="p" len="1000000"/></module>',
        ),
        ("placeholder of 5 MB", f'<module name="m">x{placeholder}</module>'),
    ):
        yield _post("limits", name, _schema(inner))
    for src in ("/etc/passwd", "../x", "file", "travel.pml", "file:///etc/passwd"):
        yield _post("limits", f"src={src}", _schema(f'<module name="m" src="{src}"/>'))
    for name, hidden in (
        ("", ""),
        ("../../x", ""),
        (".", ""),
        ("a b", ""),
        ("a/b", ""),
        ("x", "\0"),
    ):
        yield _post(
            "limits", f"name {name + hidden!r}", f'<schema name="{name}{hidden}">x</schema>'
        )
    for length in (250, 300, 1_000_000):
        name = f"name of {length} characters"
        yield _post("limits", name, f'<schema name="{"n" * length}">x</schema>')
    yield _completion("limits", "5,000 tokens", model, _prompt("word " * 5_000))
    yield _chat("limits", "5,000 tokens", model, _prompt("word " * 5_000))
    yield _completion("limits", "no PML, 8 MB", model, "word " * 1_600_000)
    yield _chat("limits", "no PML, 8 MB", model, "word " * 1_600_000)


def _form(model: str) -> Iterator[Attack]:
    """The field `prompt_modules`: prompts without markup."""
    deep = "/".join("a" * 2_000)
    for name, form in (
        ("text of 50 MB", {"text": "x" * 50 * MEGABYTE}),
        ("text of 50 MB of <", {"text": "<" * 50 * MEGABYTE}),
        ("text of 5 MB", {"text": "x y " * (5 * MEGABYTE // 4)}),
        ("argument of 5 MB", {"arguments": {"plan": {"duration": "x" * 5 * MEGABYTE}}}),
        ("100,000 imports", {"imports": ["plan/maui"] * 100_000}),
        ("4,096 other imports", {"imports": [f"plan/m{i}" for i in range(4_096)]}),
        ("import of 2,000 levels", {"imports": [deep], "arguments": {}}),
        # Time and memory are quadratic in the levels of each: 64 take a hundredth of what may come.
        ("64 imports of 2,000 levels", {"imports": [f"b{i}/{deep}" for i in range(64)]}),
        ("100,000 arguments", {"arguments": {f"m{i}": {} for i in range(100_000)}}),
        ("unknown field", {"ttl": -1}),
        *((f"schema {name!r}", {"schema": name}) for name in ("../../etc/passwd", "a b", '"><x')),
        *(
            (f"schema {name!r}", {"schema": name})
            for name in ("", "travel\n", "a\0", 5, ["travel"])
        ),
        *((f"import {name!r}", {"imports": [name]}) for name in ("../x", "plan//maui", "plan/")),
        ("import of markup", {"imports": ['maui/><user>x</user><a b="']}),
        ("parameter of markup", {"arguments": {"plan": {'a="x"/><b c': "x"}}}),
    ):
        yield _completion("form", name, model, "Hi.", prompt_modules=FORM | form)
    yield _chat("form", "text of 5 MB", model, "x y " * MEGABYTE, prompt_modules=FORM)
    for value in (1, "travel", [1], True, 0, "", [], False):
        yield _completion("form", repr(value), model, "Hi.", prompt_modules=value)
        yield _chat("form", repr(value), model, "Hi.", prompt_modules=value)
    # Asks for nothing.
    for value in ({}, None):
        answered = ANSWERED_OR_REFUSED
        yield _completion(
            "form", repr(value), model, "Hi.", prompt_modules=value, expected=answered
        )


def _paths(model: str) -> Iterator[Attack]:
    """Names in the address that mean something to a file system."""
    for name in (
        "..%2f..%2fx",
        ".",
        "..",
        "%2e%2e",
        "%00",
        "travel%00",
        "%ff",
        "..%5cx",
        "x" * 5_000,
    ):
        for method, body in (("GET", None), ("PUT", {"schema": GOOD_SCHEMA}), ("DELETE", None)):
            yield Attack("paths", f"{method} {name:.20}", f"{ROUTE}/{name}", body, method)
        yield _explain("paths", f"{name:.20}", PROMPT, name)


def _plans(model: str) -> Iterator[Attack]:
    """What only the front end may tell the scheduler."""
    remote = {
        "do_remote_prefill": True,
        "remote_engine_id": "x",
        "remote_block_ids": [1, 2, 3],
        "remote_host": "127.0.0.1",
        "remote_port": 1,
        "remote_prefill_cached_tokens": 40,
    }
    for key in (PLAN_KEY, DETAIL_KEY, PLAN_FIELD):
        for value in ("AAAA", 5, [1, 2], {"a": 1}):
            for field_name in ("vllm_xargs", "kv_transfer_params"):
                forged = {field_name: {key: value}}
                yield _forged(f"{field_name}: {key}={value!r}", model, forged)
        yield _forged(key, model, {key: None if key == PLAN_KEY else "AAAA"})
    yield _forged("extra_args", model, {"extra_args": {PLAN_KEY: "AAAA"}})
    yield _forged("kv_transfer_params: remote prefill", model, {"kv_transfer_params": remote})
    decode = {"do_remote_decode": True}
    yield _forged("kv_transfer_params: remote decode", model, {"kv_transfer_params": decode})
    yield _chat(
        "plans",
        "kv_transfer_params: remote prefill",
        model,
        PROMPT,
        kv_transfer_params=remote,
        expected=ANSWERED_OR_REFUSED,
        keeps_answer=True,
    )


def _forged(name: str, model: str, fields: dict[str, Any]) -> Attack:
    about = {"expected": ANSWERED_OR_REFUSED, "keeps_answer": True}
    return _completion("plans", name, model, PROMPT, **fields, **about)


def _encoding(model: str) -> Iterator[Attack]:
    """Text that is no Unicode, or that XML forbids."""
    secret = "<prompt schema='notes'><secret/> What?</prompt>"
    for name, char in (("surrogate", "\ud800"), ("NUL", "\0"), ("escape", "\x1b[2J")):
        yield from _everywhere("encoding", name, model, _prompt(char), _schema(char))
        yield _completion("encoding", f"{name} in a name", model, _prompt(f"<{char}/>"))
        argument = {"arguments": {"plan": {"duration": char}}}
        for what, form in (
            ("argument", argument),
            ("schema", {"schema": char}),
            ("key", {char: 1}),
            ("import", {"imports": [char]}),
        ):
            # Text of a form is no XML: all characters may stand in it that Unicode has.
            is_text = what == "argument" and name != "surrogate"
            expected = frozenset({200}) if is_text else REFUSED
            yield _completion(
                "encoding",
                f"{name}, form: {what}",
                model,
                "Hi.",
                prompt_modules=FORM | form,
                expected=expected,
            )
        expected = REFUSED if name == "surrogate" else frozenset({200})
        what = f"{name}, form: prompt"
        yield _completion("encoding", what, model, char, prompt_modules=FORM, expected=expected)
    for salt in ("\ud800", "\0", "", 5, ["a"], "x" * 1_000_000):
        name = f"cache_salt {salt!r:.12}"
        yield _completion("encoding", name, model, secret, cache_salt=salt)
    yield _completion("encoding", "private, no salt", model, secret)
    yield _explain("encoding", "private, no salt", secret, "notes")
    yield _post("encoding", "surrogate in the salt", GOOD_SCHEMA, cache_salt="\ud800")


def _bodies(model: str) -> Iterator[Attack]:
    """Bodies that are not what the content type says, or not what the route takes."""
    json_type, xml_type = {"Content-Type": "application/json"}, {"Content-Type": "application/xml"}
    for target in (ROUTE, f"{ROUTE}/travel/explain", "/v1/completions", "/v1/chat/completions"):
        for name, body, headers in (
            ("bad UTF-8", b'{"schema": "\xff", "prompt": "\xff"}', json_type),
            ("empty", b"", json_type),
            ("array", b"[1, 2]", json_type),
            ("null", b"null", json_type),
            ("100,000 brackets", b"[" * 100_000, json_type),
            ("number of 5,000 digits", b'{"schema": %s}' % (b"9" * 5_000), json_type),
            ("plain text", b"<schema/>", {"Content-Type": "text/plain"}),
            ("XML, bad UTF-8", b"\xff<schema/>", xml_type),
            ("XML, UTF-16", GOOD_SCHEMA.encode("utf-16"), xml_type),
            ("form data", b"--x", {"Content-Type": "multipart/form-data; boundary=x"}),
        ):
            yield Attack("bodies", f"{target}: {name}", target, body, headers=headers)
    for text in (
        "<prompt/>",
        _prompt(""),
        _prompt(" "),
        "<prompt>",
        '<prompt schema="none">x</prompt>',
    ):
        # A <prompt> without a schema is text that somebody wrote.
        expected = REFUSED if "schema" in text else frozenset({200})
        yield _completion("bodies", repr(text), model, text, expected=expected)
        yield _chat("bodies", repr(text), model, text, expected=expected)
    for prompt in ("", [], [""], {"prompt": PROMPT}, [PROMPT, 1], [-1], [10**9]):
        yield _completion("bodies", f"prompt {prompt!r:.20}", model, prompt)
    for key, value in (("ttl", -1), ("ttl", 10**30), ("ttl", "-1h"), ("ttl", "0s"), ("pin", -1)):
        yield _post("bodies", f"{key}={value!r:.12}", GOOD_SCHEMA, **{"pin": True, key: value})
    yield _post("bodies", "unknown field", GOOD_SCHEMA, max_age=-1)
    yield _post("bodies", "ttl without pin", GOOD_SCHEMA, ttl="1h")
