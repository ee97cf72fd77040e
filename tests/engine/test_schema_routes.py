"""`/v1/prompt_schemas` of a live server with two API servers, an API key and an admin key."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.engine.endpoints import Endpoints
from tests.engine.server import MODEL_NAME, running_server

ROUTE = "/v1/prompt_schemas"
KEYS = {"Authorization": "Bearer secret", "X-Prompt-Schemas-Admin-Key": "admin"}
OPTIONS = ["--api-server-count=2", "--api-key=secret", "--prompt-schemas-admin-key=admin"]
LONG = "The quick brown fox jumps over the lazy dog, and then it runs home through the rain. " * 3


def schema(name: str, *texts: str, attributes: str = "") -> str:
    """One module for each text: `m0`, `m1`, ..."""
    modules = "".join(f'<module name="m{i}">{text}</module>' for i, text in enumerate(texts))
    return f'<schema name="{name}" {attributes}>{modules}</schema>'


def prompt(name: str, *modules: int) -> str:
    """Imports some modules; each call with the same modules has the same text."""
    imports = "".join(f"<m{i}/>" for i in modules)
    return f'<prompt schema="{name}">{imports} And so</prompt>'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("schemas")
    (folder / "by-hand.pml").write_text(schema("written", "Some text."))
    return folder


@pytest.fixture(scope="module")
def client(smollm2: Path, folder: Path) -> Iterator[httpx.Client]:
    with (
        running_server(smollm2, folder, *OPTIONS) as url,
        # A connection each: the two servers take them in turn.
        httpx.Client(
            base_url=url,
            headers=KEYS,
            timeout=120,
            limits=httpx.Limits(max_keepalive_connections=0),
        ) as client,
    ):
        yield client


def num_cached(client: httpx.Client, text: str) -> int:
    """Cached tokens of a prompt."""
    endpoints = Endpoints(str(client.base_url).rstrip("/"), MODEL_NAME, "secret")
    return endpoints.completion(text).num_cached_tokens


def residency(client: httpx.Client, name: str) -> list[Any]:
    """Whether each module of a schema is resident, the root first."""
    return [
        module["tier"] == "kv_cache" for module in client.get(f"{ROUTE}/{name}").json()["modules"]
    ]


def test_the_log_says_what_is_on(client: httpx.Client, folder: Path) -> None:
    assert client.get("/health").status_code == 200
    log = (folder / "server.log").read_text()
    assert "Prompt modules are on: 1 schemas with 2 modules, which take 1 KV cache blocks" in log


def test_a_schema_is_posted_used_replaced_and_deleted(client: httpx.Client, folder: Path) -> None:
    first = schema("story", LONG, LONG[40:])
    created = client.post(ROUTE, json={"schema": first, "warm": True})
    assert created.status_code == 201, created.text
    assert client.post(ROUTE, json={"schema": first}).status_code == 200
    assert (folder / "story.pml").read_text() == first
    assert residency(client, "story")[1:] == [True, True]
    assert num_cached(client, prompt("story", 0, 1)) > 0

    second = schema("story", LONG, LONG[40:] + "Then it sleeps.")
    assert client.post(ROUTE, json={"schema": second}).status_code == 409
    replaced = client.put(f"{ROUTE}/story", json={"schema": second})
    assert replaced.status_code == 200
    sizes = [module["num_tokens"] for module in replaced.json()["modules"]]
    assert replaced.json()["num_kept_tokens"] == sizes[1]
    assert replaced.json()["num_changed_tokens"] == sizes[2]
    for _ in range(8):  # whichever server answers
        assert residency(client, "story")[1:] == [True, False]
        listed = client.get(ROUTE).json()["data"]
        assert [item["name"] for item in listed] == ["story", "written"]

    assert client.delete(f"{ROUTE}/story").status_code == 204
    for _ in range(8):
        assert client.get(f"{ROUTE}/story").status_code == 404
    assert not (folder / "story.pml").exists()


def test_only_what_changed_is_encoded_again(
    client: httpx.Client, capsys: pytest.CaptureFixture[str]
) -> None:
    """Counted by the engine, not by who compares the versions; a request in flight goes on."""
    texts = [f"Chapter {i}: " + LONG for i in range(6)]
    # The engine would count the tokens of primers as well.
    attributes = 'encode="anchored"'
    body = {"schema": schema("book", *texts, attributes=attributes), "warm": True}
    counts = [num_encoded(client)]
    first = client.post(ROUTE, json=body).json()
    counts.append(num_encoded(client))
    text = prompt("book", 0, 5)
    expected = client.post("/v1/completions", json=completion(text)).json()["choices"][0]["text"]

    with client.stream("POST", "/v1/completions", json=completion(text, stream=True)) as stream:
        lines = stream.iter_lines()
        answer = [next(lines)]
        # As long as the old one: what follows it does not move.
        texts[3] = texts[3].replace("quick", "slow")
        body["schema"] = schema("book", *texts, attributes=attributes)
        second = client.put(f"{ROUTE}/book", json=body).json()
        answer += lines
    counts.append(num_encoded(client))
    with capsys.disabled():
        print(
            f"\nencoded: {counts[1] - counts[0]} of {first['num_tokens']} tokens by POST, ", end=""
        )
        print(f"{counts[2] - counts[1]} by PUT of one changed module of six")
    assert counts[1] - counts[0] == first["num_changed_tokens"]
    assert counts[2] - counts[1] == second["num_changed_tokens"] < first["num_changed_tokens"] / 4
    chunks = [json.loads(line[6:]) for line in answer if line.startswith("data: {")]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == expected


def completion(text: str, **options: Any) -> dict[str, Any]:
    """A request that takes a while."""
    return {"model": MODEL_NAME, "prompt": text, "max_tokens": 80, "temperature": 0} | options


def num_encoded(client: httpx.Client) -> float:
    """Tokens of modules that the engine has encoded so far, as /metrics says."""
    time.sleep(0.5)  # counts travel with the next output
    lines = client.get("/metrics").text.splitlines()
    found = [line for line in lines if line.startswith("promptcache_tokens_encoded_total")]
    return sum(float(line.rpartition(" ")[2]) for line in found)


def test_a_pinned_schema_stays(client: httpx.Client) -> None:
    def pinned() -> list[bool]:
        modules = client.get(f"{ROUTE}/pinned").json()["modules"]
        return [module["pinned"] and module["tier"] == "kv_cache" for module in modules][1:]

    text = schema("pinned", "Pinned: " + LONG, LONG[5:])
    answer = client.post(ROUTE, json={"schema": text, "pin": True, "ttl": "1h"})
    assert answer.status_code == 201, answer.text
    assert pinned() == [True, True]
    assert client.post(ROUTE, json={"schema": text, "ttl": "1h"}).status_code == 400
    assert client.put(f"{ROUTE}/pinned", json={"schema": text}).status_code == 200
    assert pinned() == [False, False]
    one = text.replace('<module name="m1"', '<module name="m1" pin="true" ttl="2s"')
    assert client.put(f"{ROUTE}/pinned", json={"schema": one}).json()["num_changed_tokens"] == 0
    assert pinned() == [False, True]
    time.sleep(2.1)
    assert pinned() == [False, False]


def test_more_than_the_pinned_share_is_refused(client: httpx.Client) -> None:
    # A block each; the root takes none.
    text = schema("many", *(f"Text {i} of many." for i in range(60)))
    answer = client.post(ROUTE, json={"schema": text, "pin": True})
    assert answer.status_code == 409
    message = answer.json()["error"]["message"]
    assert "is written, but not pinned or warm" in message
    assert "pinned modules would take 60 KV cache blocks" in message
    assert client.delete(f"{ROUTE}/many").status_code == 204


def test_metrics_forget_a_schema(client: httpx.Client) -> None:
    """Whichever server has counted it, and whichever is asked."""

    def lines(name: str) -> list[str]:
        return [line for line in client.get("/metrics").text.splitlines() if f'"{name}"' in line]

    for name in ("counted", "kept"):
        body = {"schema": schema(name, f"{name}: " + LONG)}
        assert client.post(ROUTE, json=body).status_code == 201
        for _ in range(4):
            num_cached(client, prompt(name, 0))
    time.sleep(0.5)  # counts travel with the next output
    assert lines("counted")
    assert client.delete(f"{ROUTE}/counted").status_code == 204
    time.sleep(1.5)
    for _ in range(8):
        assert not lines("counted")
        assert lines("kept")
    client.delete(f"{ROUTE}/kept")


def test_explain(client: httpx.Client) -> None:
    text = schema("explained", "Explained: " + LONG, LONG[9:])
    assert client.post(ROUTE, json={"schema": text}).status_code == 201
    ask = {"prompt": prompt("explained", 0)}
    cold = client.post(f"{ROUTE}/explained/explain", json=ask).json()
    assert cold["num_tokens_to_encode"] == cold["num_cached_tokens"] > 0
    num_cached(client, ask["prompt"])
    warm = client.post(f"{ROUTE}/explained/explain", json=ask).json()
    assert warm["num_tokens_to_encode"] == 0
    bad = client.post(f"{ROUTE}/explained/explain", json={"prompt": prompt("explained", 7)})
    assert (bad.status_code, bad.json()["error"]["type"]) == (400, "PMLError")
    assert client.post(f"{ROUTE}/other/explain", json=ask).status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "message"),
    [
        ("POST", "", {"schema": "<schema"}, 400, "<schema>:1:"),
        ("POST", "", {"schema": schema("x", '<module name="m0" src="/etc/passwd"/>')}, 400, "src"),
        ("POST", "", {"scheme": "x"}, 400, "schema: Field required"),
        ("POST", "", {"schema": "x", "pine": True}, 400, "pine: Extra inputs"),
        ("POST", "", {"schema": "<schema name='a'>" + "<user>" * 99}, 400, "nest"),
        ("POST", "", {"schema": "<!DOCTYPE a [<!ENTITY b 'c'>]><schema/>"}, 400, "DOCTYPE"),
        ("PUT", "/one", {"schema": schema("two", "x")}, 400, "the address names `one`"),
        ("PUT", "/written", {"schema": schema("written", "x")}, 409, "by-hand.pml"),
        ("DELETE", "/written", None, 409, "by-hand.pml"),
        ("DELETE", "/none", None, 404, "there is no schema `none`"),
        ("GET", "/writen", None, 404, "did you mean `written`?"),
    ],
)
def test_bad_requests(
    client: httpx.Client, method: str, path: str, body: Any, status: int, message: str
) -> None:
    answer = client.request(method, ROUTE + path, json=body)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert message in error["message"]
    assert error["code"] == status


def test_a_huge_body_is_refused(client: httpx.Client) -> None:
    answer = client.post(ROUTE, json={"schema": "x" * 50 * 2**20})
    assert answer.status_code == 413, answer.text


@pytest.mark.parametrize("key", ["Authorization", "X-Prompt-Schemas-Admin-Key"])
def test_both_keys_are_needed_for_writing(client: httpx.Client, key: str) -> None:
    for method, path in (("POST", ""), ("PUT", "/x"), ("DELETE", "/written")):
        answer = client.request(method, ROUTE + path, headers={key: "wrong"}, json={"schema": "x"})
        assert answer.status_code == 401
    answer = client.get(ROUTE, headers={key: "wrong"})
    assert answer.status_code == (401 if key == "Authorization" else 200)


def test_schemas_survive_a_restart_and_may_be_read_only(smollm2: Path, tmp_path: Path) -> None:
    text = schema("kept", LONG)
    with running_server(smollm2, tmp_path) as url:
        assert httpx.post(url + ROUTE, json={"schema": text}, timeout=60).status_code == 201
    with running_server(smollm2, tmp_path, "--prompt-schemas-read-only") as url:
        assert [item["name"] for item in httpx.get(url + ROUTE).json()["data"]] == ["kept"]
        assert httpx.post(url + ROUTE, json={"schema": text}).status_code == 403
        assert Endpoints(url, MODEL_NAME).completion(prompt("kept", 0)).texts[0]
