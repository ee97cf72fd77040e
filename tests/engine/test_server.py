"""`vllm serve --enable-prompt-modules`, as a client sees it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

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
PROMPT = (
    '<prompt schema="travel"><plan duration="a week"><maui/></plan>'
    "<user>Name the surf spots.</user></prompt>"
)
ENGINE_OPTIONS = [
    "--enforce-eager",
    "--max-model-len=1024",
    "--kv-cache-memory-bytes=134217728",
    "--dtype=float32",
]
VLLM = [sys.executable, "-m", "vllm.entrypoints.cli.main"]


def environment() -> dict[str, str]:
    """The engine in processes of its own, as users run it."""
    return os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}


@pytest.fixture(scope="module")
def url(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "travel.pml").write_text(SCHEMA)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--port", str(port), "--host", "127.0.0.1", "--served-model-name", "smol"]
    modules = ["--enable-prompt-modules", "--prompt-schemas", str(folder)]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [*VLLM, "serve", str(smollm2), *options, *modules, *ENGINE_OPTIONS],
            stdout=log,
            stderr=log,
            env=environment(),
            start_new_session=True,
        )
        try:
            address = f"http://127.0.0.1:{port}"
            wait_until_ready(server, address, folder / "log")
            yield address
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(60)


def wait_until_ready(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    for _ in range(600):
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
            return
        except OSError:
            assert server.poll() is None, log.read_text()[-3000:]
            time.sleep(0.5)
    raise AssertionError(log.read_text()[-3000:])


def post(url: str, **body: Any) -> tuple[int, str]:
    """Status and body of a completion."""
    data = json.dumps({"model": "smol", "temperature": 0, "max_tokens": 8} | body).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/completions", data, headers)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_pml_prompt_is_completed_from_its_modules(url: str) -> None:
    answers = [json.loads(post(url, prompt=PROMPT)[1]) for _ in range(2)]
    usage = answers[0]["usage"]
    assert usage["completion_tokens"] == 8
    assert 0 < usage["prompt_tokens_details"]["cached_tokens"] < usage["prompt_tokens"]
    assert answers[0]["choices"][0]["text"] == answers[1]["choices"][0]["text"]
    assert answers[0]["usage"] == answers[1]["usage"]


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
