"""`vllm serve --enable-prompt-modules`, as a client sees it."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.engine.collector import Collector, collecting
from tests.engine.endpoints import PROMPT, Endpoints
from tests.engine.marked_clients import NUM_DOCUMENTS, NUM_WORDS, MarkedClients
from tests.engine.server import ENGINE_OPTIONS, MODEL_NAME, VLLM, environment, running_server

SCHEMA = """\
<schema name="travel">
  <system>You are a travel planner.</system>
  <user>
    <module name="plan">Plan a trip of <param name="duration" len="6"/>.
      <union>
        <module name="miami">Miami has beaches, art deco houses and Cuban food.</module>
        <module name="maui">Maui has a volcano, whales in winter and good surf.</module>
      </union>
    </module>
  </user>
</schema>
"""
# A private schema: each tenant has its own modules.
NOTES = """\
<schema name="notes" private="true"><module name="secret">The launch code of the harbour crane is
seven green turtles, and the night shift keeps it in the blue cabinet beside the old radio.</module>
</schema>
"""


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as running:
        yield running


@pytest.fixture(scope="module")
def url(
    smollm2: Path, tmp_path_factory: pytest.TempPathFactory, collector: Collector
) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "travel.pml").write_text(SCHEMA)
    (folder / "notes.pml").write_text(NOTES)
    tools = ["--enable-auto-tool-choice", "--tool-call-parser=hermes"]
    tracing = f"--otlp-traces-endpoint={collector.url}"
    with running_server(smollm2, folder, *tools, tracing) as address:
        yield address


def post(url: str, **body: Any) -> tuple[int, str]:
    """Status and body of a completion."""
    data = json.dumps({"model": MODEL_NAME, "temperature": 0, "max_tokens": 8} | body).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/completions", data, headers)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_pml_prompt_is_completed_from_its_modules(url: str) -> None:
    answers = [json.loads(post(url, prompt=PROMPT)[1]) for _ in range(2)]
    cold, warm = (answer["usage"] for answer in answers)
    assert cold["completion_tokens"] == 8
    assert not cold["prompt_tokens_details"]["cached_tokens"]
    assert 0 < warm["prompt_tokens_details"]["cached_tokens"] < warm["prompt_tokens"]
    assert answers[0]["choices"][0]["text"] == answers[1]["choices"][0]["text"]


def test_every_endpoint_takes_pml(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    table = {(name, kind): answer for name, kind, answer in Endpoints(url, MODEL_NAME).table()}
    with capsys.disabled():
        print("".join(f"\n{name:12} {kind:18} {answer}" for (name, kind), answer in table.items()))
    whole = table["completions", "PML"]
    for name in ("completions", "chat", "responses", "messages"):
        assert not table[name, "plain"].texts[0].startswith(whole.texts[0])
        assert table[name, "PML"] == whole
        assert table[name, "bad input"].status == 400
        assert "did you mean `maui`?" in table[name, "bad input"].texts[0]
    for name in ("completions", "chat"):
        assert table[name, "PML stream"] == table[name, "form"] == whole
        assert table[name, "PML logprobs"] == whole
        assert whole.texts[0].startswith(table[name, "PML stop"].texts[0])
        assert len(set(table[name, "PML n=2"].texts)) == 2
        assert table[name, "PML json"].texts[0].startswith("{")
        assert table[name, "bad, stream"].status == 400
    assert table["completions", "PML, plain"].num_cached_tokens == whole.num_cached_tokens
    assert "get_weather" in table["chat", "PML tools"].texts[0]
    for kind in ("prompt_logprobs", "beam search"):
        assert table["completions", kind].status == 400
    for kind in ("PML behind system", "PML part"):
        assert table["chat", kind].status == 200
        assert table["chat", kind].num_prompt_tokens > whole.num_prompt_tokens
    # Text before the modules may have other tokens of them computed again.
    assert table["chat", "PML part"].num_cached_tokens > whole.num_cached_tokens / 2
    assert table["chat", "PML as system"].status == 400


def test_a_conversation_finds_its_first_turn(url: str) -> None:
    ask = Endpoints(url, MODEL_NAME).chat
    first = ask(PROMPT)
    messages = [
        {"role": "user", "content": PROMPT},
        {"role": "assistant", "content": first.texts[0]},
        {"role": "user", "content": "And where are the best whales? Tell me all about them."},
    ]
    second, again = ask(messages), ask(messages)
    assert second.num_cached_tokens >= first.num_prompt_tokens // 32 * 32
    assert again.num_cached_tokens >= second.num_prompt_tokens // 32 * 32
    assert again.texts == second.texts


def test_clients_that_mark_documents_find_them_in_any_order(url: str) -> None:
    """OpenAI's and Anthropic's own packages; all but the question and the template is read."""
    clients = MarkedClients(url, MODEL_NAME)
    for number in range(NUM_DOCUMENTS):
        clients.chat([number])
    for order in clients.orders(3, seed=0):
        plain = clients.chat(order, extra_body={"prompt_modules": {"marks": False}})
        marked = clients.chat(order)
        assert marked.num_tokens == plain.num_tokens
        again = clients.chat(order, {"module": True})
        assert (again.text, again.num_tokens) == (marked.text, marked.num_tokens)
        assert again.num_cached >= marked.num_cached
    for ask in (clients.chat, clients.response, clients.message):
        for order in clients.orders(3, seed=1):
            ask(order)  # Rules behind other text are other modules.
        for order in clients.orders(3, seed=2):
            usage = ask(order)
            assert usage.num_tokens - usage.num_cached < 30
            assert usage.text
    # Nothing has followed it as closely before.
    assert clients.tool_result(0).num_cached == 0
    assert clients.tool_result(0).num_cached > NUM_WORDS


def test_a_conversation_with_marks_streams_and_has_detail(url: str) -> None:
    clients = MarkedClients(url, MODEL_NAME)
    asked = {"prompt_modules": {"detail": True}, "cache_salt": "tenant"}
    body = {"messages": [clients._user([0, 1], "text", {"module": True})], "max_tokens": 4}
    body |= {"model": MODEL_NAME, "stream_options": {"include_usage": True}, "stream": True}
    for status in ("encoded", "hit"):
        answer = httpx.post(f"{url}/v1/chat/completions", json=body | asked, timeout=120)
        *_, last, done = [line[6:] for line in answer.text.splitlines() if line]
        told = json.loads(last)["prompt_modules"]
        assert [module["path"] for module in told] == ["", "#1", "#2"]
        assert {module["status"] for module in told[1:]} == {status}
        assert done == "[DONE]"


def test_tenants_do_not_share_private_modules(url: str) -> None:
    text = "<prompt schema='notes'><secret/> What is the launch code?</prompt>"
    refused = Endpoints(url, MODEL_NAME).attempt("completions", text)
    assert refused.status == 400
    assert "set `cache_salt`" in refused.texts[0]

    def num_cached(salt: str) -> int:
        ask = Endpoints(url, MODEL_NAME).completion
        return ask(text, extra_body={"cache_salt": salt}).num_cached_tokens

    counts = [num_cached(salt) for salt in ("A", "A", "B", "B", "A")]
    assert counts[0] == counts[2] == 0
    assert counts[1] == counts[3] == counts[4] > 0


def test_the_response_tells_what_was_reused(url: str) -> None:
    asked = {"prompt_modules": {"detail": True}}
    text = PROMPT.replace("maui", "miami")
    first, second = (json.loads(post(url, prompt=text, **asked)[1]) for _ in range(2))
    assert [(m["path"], m["status"], m["read_as"]) for m in first["prompt_modules"]] == [
        ("", "hit", "isolated"),
        ("plan", "hit", "primed"),
        ("plan/miami", "encoded", "primed"),
    ]
    assert {module["status"] for module in second["prompt_modules"]} == {"hit"}
    assert first["kv_transfer_params"] is None
    _, body = post(url, prompt=text, stream=True, stream_options={"include_usage": True}, **asked)
    *_, last, done = [line.removeprefix("data: ") for line in body.splitlines() if line]
    assert json.loads(last)["prompt_modules"] == second["prompt_modules"]
    assert done == "[DONE]"


def test_prompt_tokens_are_those_of_the_document_as_read(url: str) -> None:
    plain = "You are a travel planner."
    choice = json.loads(post(url, prompt=PROMPT, return_token_ids=True)[1])["choices"][0]
    usage = json.loads(post(url, prompt=PROMPT, echo=True, max_tokens=1)[1])
    echo = usage["choices"][0]["text"]
    order = [plain, "Plan a trip of", "a week", "Maui has a volcano", "Name the surf spots."]
    places = [echo.find(part) for part in order]
    assert places == sorted(places)
    assert places[0] >= 0
    assert "schema=" not in echo
    assert usage["usage"]["prompt_tokens"] == len(choice["prompt_token_ids"])
    _, body = post(url, prompt=PROMPT, return_token_ids=True, stream=True)
    first = json.loads(body.splitlines()[0].removeprefix("data: "))["choices"][0]
    assert first["prompt_token_ids"] == choice["prompt_token_ids"]
    # What was returned is a prompt that reads the same.
    again = json.loads(post(url, prompt=choice["prompt_token_ids"], echo=True, max_tokens=1)[1])
    assert again["usage"]["prompt_tokens"] == usage["usage"]["prompt_tokens"]


def test_a_tag_of_the_users_own_is_text(url: str) -> None:
    for text in ("<prompt>Fix my text</prompt>", '<prompt version="1.2">'):
        assert post(url, prompt=text)[0] == 200
        assert Endpoints(url, MODEL_NAME).attempt("chat", text).status == 200


def test_the_field_takes_all_characters_and_names_itself_in_errors(url: str) -> None:
    field: dict[str, Any] = {"schema": "travel", "imports": ["plan/maui"]}
    field["arguments"] = {"plan": {"duration": "a\fday"}}
    assert post(url, prompt="page 1\fpage 2\r\n", prompt_modules=field)[0] == 200
    field["imports"] = ["plan/maui", "plan/mauii"]
    status, answer = post(url, prompt="x", prompt_modules=field)
    assert status == 400
    message = json.loads(answer)["error"]["message"]
    assert "prompt_modules.imports[1]: there is no module `mauii` in `plan`" in message


def test_a_stream_says_the_same(url: str) -> None:
    whole = json.loads(post(url, prompt=PROMPT)[1])["choices"][0]["text"]
    status, body = post(url, prompt=PROMPT, stream=True)
    lines = [line.removeprefix("data: ") for line in body.splitlines() if line]
    assert status == 200
    assert lines.pop() == "[DONE]"
    assert "".join(json.loads(line)["choices"][0]["text"] for line in lines) == whole


def test_a_list_may_mix_pml_and_plain_prompts(url: str) -> None:
    plain = json.loads(post(url, prompt="The sky is")[1])["choices"][0]["text"]
    both = json.loads(post(url, prompt=[PROMPT, "The sky is"])[1])["choices"]
    assert both[1]["text"] == plain


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"prompt": PROMPT.replace("maui", "mauii")}, "<prompt>:1:49: there is no module `mauii`"),
        ({"prompt": PROMPT.replace("</plan>", "")}, "<prompt>:1:"),
        ({"prompt": '<prompt schema="none">x</prompt>'}, "there is no schema `none`"),
        ({"prompt": PROMPT.replace("maui", "mauii"), "stream": True}, "did you mean `maui`?"),
        ({"prompt": PROMPT, "prompt_logprobs": 1}, "prompt_logprobs cannot be combined"),
        ({"prompt": PROMPT, "use_beam_search": True, "n": 2}, "beam search cannot be combined"),
        ({"prompt": PROMPT, "truncate_prompt_tokens": 9}, "cannot be truncated"),
    ],
)
def test_bad_input_is_answered_with_400(url: str, body: dict[str, Any], message: str) -> None:
    status, answer = post(url, **body)
    assert status == 400
    error = json.loads(answer)["error"]
    assert message in error["message"]
    assert error["type"] == "BadRequestError"
    assert post(url, prompt="The sky is")[0] == 200


def test_a_plan_of_the_client_is_dropped(url: str) -> None:
    for forged in ("AAAA", {"a": 1}, [1, 2]):
        xargs = {"prompt_modules": forged}
        status, answer = post(url, prompt="The sky is", vllm_xargs=xargs)
        assert status in (200, 400), answer  # vLLM itself refuses what is no string or number
        assert post(url, prompt=PROMPT, vllm_xargs={"prompt_modules": "AAAA"})[0] == 200
    assert post(url, prompt=PROMPT)[0] == 200


def test_a_trace_shows_what_modules_did(url: str, collector: Collector) -> None:
    trace_id, span_id = 32 * "a", 16 * "b"
    ask = Endpoints(url, MODEL_NAME).completion
    text = "<prompt schema='notes'><secret/> What?</prompt>"
    headers = {"traceparent": f"00-{trace_id}-{span_id}-01"}
    ask(text, extra_body={"cache_salt": "traced"}, extra_headers=headers)
    spans = collector.trace(trace_id, 4)
    plan, wait, encode, request = (
        spans[name]
        for name in (
            "prompt_modules.plan",
            "prompt_modules.wait",
            "prompt_modules.encode",
            "llm_request",
        )
    )
    assert {span.parent_span_id.hex() for span in spans.values()} == {span_id}
    assert plan.start_time_unix_nano < plan.end_time_unix_nano <= wait.end_time_unix_nano
    assert wait.start_time_unix_nano <= encode.start_time_unix_nano
    assert encode.end_time_unix_nano <= wait.end_time_unix_nano <= request.end_time_unix_nano
    assert {a.key: a.value.string_value for a in plan.attributes}["schema"] == "notes"


def test_a_request_without_trace_has_one_of_its_own(url: str, collector: Collector) -> None:
    collector.spans.clear()
    post(url, prompt=PROMPT)
    while not (plans := [s for s in collector.spans if s.name == "prompt_modules.plan"]):
        time.sleep(0.1)
    spans = collector.trace(plans[0].trace_id.hex(), 2)
    assert spans["llm_request"].parent_span_id == spans["prompt_modules.plan"].span_id


def test_a_bad_schema_file_stops_the_start(smollm2: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.pml").write_text('<schema name="bad">\n  <modul name="a"/>\n</schema>')
    modules = ["--enable-prompt-modules", "--prompt-schemas", str(tmp_path)]
    server = subprocess.run(
        [*VLLM, "serve", str(smollm2), *modules, *ENGINE_OPTIONS],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=300,
    )
    assert server.returncode != 0
    last_lines = server.stderr.strip().splitlines()[-4:]
    assert "bad.pml:2:3: unknown element `<modul>`" in "\n".join(last_lines)


def test_an_option_without_the_flag_is_an_error_without_traceback(smollm2: Path) -> None:
    server = subprocess.run(
        [*VLLM, "serve", str(smollm2), "--prompt-schemas", "."],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=300,
    )
    assert server.returncode != 0
    assert "add --enable-prompt-modules" in server.stderr.strip().splitlines()[-1]
    assert "Traceback" not in server.stderr


def test_help_shows_the_options(tmp_path: Path) -> None:
    done = subprocess.run(
        [*VLLM, "serve", "--help=promptmodulesconfig"],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=300,
    )
    for option in ("--enable-prompt-modules", "--prompt-schemas DIR", "--prompt-modules-encode"):
        assert option in done.stdout
