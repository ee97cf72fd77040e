"""`vllm serve --prompt-modules-shadow 1`, with two API servers."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.engine.endpoints import Endpoints
from tests.engine.server import MODEL_NAME, running_server

OPTIONS = ["--prompt-modules-shadow=1", "--api-server-count=2"]
TEXTS = (
    "Maui has a volcano that is ten thousand feet high, whales in winter, and good surf all year. "
    "The best beach for small children is Wailea, which has showers and a lawn with shade.",
    "Lisbon is a city of seven hills with yellow trams and fado in the evening. The best trip for "
    "a day is Sintra, whose palaces lie in a cool forest above the sea.",
    "Oslo lies at a fjord. Its museums show ships of Vikings and the raft Kon-Tiki, and a ferry "
    "brings swimmers to small islands in less than twenty minutes.",
)
MODULES = "".join(f'<module name="m{i}">{text} </module>' for i, text in enumerate(TEXTS))
SCHEMAS = {
    "isolated": f'<schema name="isolated"><user>{MODULES}</user></schema>',
    "exact": f'<schema name="exact" encode="exact"><user>{MODULES}</user></schema>',
    "tenants": f'<schema name="tenants" private="true">{MODULES}</schema>',
}
QUESTIONS = ("Where can I surf?", "Which trip takes a day?", "Where is a raft?")


def prompt(name: str, question: str) -> str:
    """Imports all modules."""
    return f'<prompt schema="{name}"><m2/><m0/><m1/><user>{question}</user></prompt>'


@pytest.fixture(scope="module")
def url(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    for name, text in SCHEMAS.items():
        (folder / f"{name}.pml").write_text(text)
    with running_server(smollm2, folder, *OPTIONS) as address:
        yield address


def found(url: str, name: str, schema: str | None = None) -> float:
    """A metric of the shadow check, of both servers together; one that is not there is 0."""
    label = "" if schema is None else rf'{{schema="{schema}"}}'
    line = rf"^promptcache_shadow_{name}{label} (\S+)$"
    match = re.search(line, httpx.get(f"{url}/metrics", timeout=60).text, re.MULTILINE)
    return float(match[1]) if match else 0.0


def wait_for(url: str, schema: str, number: int) -> None:
    """Waits until so many prompts of a schema have been compared."""
    for _ in range(300):
        if found(url, "compared_total", schema) >= number:
            return
        time.sleep(0.2)
    raise AssertionError(httpx.get(f"{url}/metrics").text)


@pytest.mark.parametrize("schema", ["isolated", "exact"])
def test_every_prompt_is_compared(
    url: str, schema: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = Endpoints(url, MODEL_NAME)
    for question in QUESTIONS:
        ask.completion(prompt(schema, question))
        ask.chat(prompt(schema, question))
        ask.completion("The sky is")
    number = 2 * len(QUESTIONS)
    wait_for(url, schema, number)
    assert found(url, "compared_total", schema) == number
    assert found(url, "divergence_nats_count", schema) == number
    mean = found(url, "divergence_nats_sum", schema) / number
    same = found(url, "same_first_token_total", schema)
    with capsys.disabled():
        print(f"\n{schema}: KL of the first token {mean:.2g} nats, {same:.0f} of {number} the same")
    if schema == "exact":
        assert mean < 1e-6
        assert same == number
    else:
        assert mean > 1e-3
    assert found(url, "failed_total") == found(url, "dropped_total") == 0


def test_streams_and_conversations_are_compared_as_their_tenant(url: str) -> None:
    ask = Endpoints(url, MODEL_NAME)
    text = '<prompt schema="tenants"><m0/> Where can I surf?</prompt>'
    messages = [
        {"role": "user", "content": text},
        {"role": "assistant", "content": "Maui."},
        {"role": "user", "content": "And in winter?"},
    ]
    salted = {"cache_salt": "tenant"}
    ask.completion(text, extra_body=salted, stream=True, stream_options={"include_usage": True})
    first = ask.chat(messages, extra_body=salted)
    wait_for(url, "tenants", 2)
    assert found(url, "failed_total") == 0
    # What a comparison leaves in the cache is that of the same tenant.
    assert ask.chat(messages, extra_body=salted).texts == first.texts
    assert ask.chat(messages, extra_body={"cache_salt": "other"}).num_cached_tokens == 0


def test_metrics_are_there_before_anything_was_compared(url: str) -> None:
    text = httpx.get(f"{url}/metrics", timeout=60).text
    for name in ("dropped", "failed"):
        assert f"promptcache_shadow_{name}_total 0.0" in text
