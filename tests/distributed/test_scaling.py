"""Replicas that come, go and are replaced, on two nodes. Run by `make test-ray`; takes minutes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import pytest

from tests.distributed.cluster import (
    PATIENCE_S,
    counted,
    deploy_as_configured,
    names,
    nodes,
    running_cluster,
)
from tests.families import LLAMA

pytestmark = pytest.mark.ray

NUM_SCHEMAS = 4
MAX_TOKENS = 900
DOCUMENT = "the river runs behind the house and the old road to the town " * 6
ENCODED, READ = "promptcache_tokens_encoded_total", "promptcache_tokens_restored_total"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running_cluster(num_nodes=2) as address:
        yield address


@pytest.fixture(scope="module")
def args(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of an app with a schema folder, and a common folder of modules."""
    model, schemas, modules = (tmp_path_factory.mktemp(name) for name in ("model", "pml", "kv"))
    for n in range(NUM_SCHEMAS):
        text = f"<schema name='s{n}'>Read {n}. <module name='a'>{DOCUMENT}</module></schema>"
        (schemas / f"s{n}.pml").write_text(text)
    folders = {"prompt_schemas": str(schemas), "prompt_modules_dir": str(modules)}
    return {"model": str(LLAMA.save(model))} | folders


def body(number: int, **others: Any) -> dict[str, Any]:
    prompt = f"<prompt schema='s{number % NUM_SCHEMAS}'><a/> What is {number}?</prompt>"
    return {"model": "smol", "prompt": prompt, "max_tokens": 8, "temperature": 0} | others


# Making one takes more time than a request.
CLIENT = httpx.Client(timeout=300, limits=httpx.Limits(max_keepalive_connections=0))


def complete(url: str, number: int) -> httpx.Response:
    return CLIENT.post(f"{url}/v1/completions", json=body(number))


def texts(url: str) -> list[str]:
    answers = [complete(url, number) for number in range(2 * NUM_SCHEMAS)]
    return [answer.json()["choices"][0]["text"] for answer in answers]


@contextmanager
def clients(url: str, number: int) -> Iterator[Counter[int]]:
    """Clients that ask without a pause; counts the statuses of what they are answered."""
    stop, statuses = Event(), Counter[int]()

    def ask(first: int) -> None:
        for question in range(first, 1_000_000, number):
            if stop.is_set():
                return
            statuses[complete(url, question).status_code] += 1

    with ThreadPoolExecutor(number) as pool:
        running = [pool.submit(ask, first) for first in range(number)]
        try:
            yield statuses
        finally:
            stop.set()
        for each in running:
            each.result()


def streamed(url: str, begun: Event, max_tokens: int) -> str:
    """All of a stream."""
    asked = body(0, stream=True, max_tokens=max_tokens, ignore_eos=True)
    asked["stream_options"] = {"include_usage": True}
    text = ""
    with CLIENT.stream("POST", f"{url}/v1/completions", json=asked) as answer:
        for piece in answer.iter_text():
            text += piece
            begun.set()
    return text


def test_a_client_that_leaves_ends_its_request(url: str, args: dict[str, str]) -> None:
    deploy_as_configured(args, 1)
    asked = body(0, stream=True, max_tokens=MAX_TOKENS, ignore_eos=True)
    before = generated()
    with CLIENT.stream("POST", f"{url}/v1/completions", json=asked) as answer:
        next(answer.iter_text())
    seen = -1.0
    while seen != (now := generated()):
        seen = now
        time.sleep(1)
    assert before < seen < before + MAX_TOKENS


def generated() -> float:
    """Tokens that all replicas have generated."""
    return sum(counted("vllm:generation_tokens_total").values())


def test_replicas_come_are_replaced_and_go_without_a_failed_request(
    url: str, args: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """From one replica to two, to two with another option, to one."""
    deploy_as_configured(args, 1)
    expected = texts(url)
    (first,) = names("replicas")
    (encoded,) = counted(ENCODED).values()
    assert encoded > 0
    _wait_for_files(Path(args["prompt_modules_dir"]))

    with clients(url, 4) as statuses:
        deploy_as_configured(args, 2)
        _wait(lambda: _served(url) == 2)
    (late,) = names("replicas") - {first}
    assert len(nodes("replicas")) == 2
    # What the first one has encoded is read by the late one.
    assert counted(ENCODED) == {first: encoded, late: 0}
    assert counted(READ)[late] > 0
    told = [f"a late replica: {dict(statuses)}, read {counted(READ)[late]:.0f} tokens"]
    assert statuses.keys() == {200}

    args["max_num_seqs"] = "16"
    with clients(url, 4) as statuses:
        deploy_as_configured(args, 2)
    assert not {first, late} & names("replicas")
    told.append(f"all replaced: {dict(statuses)}, encoded {sum(counted(ENCODED).values()):.0f}")
    assert statuses.keys() == {200}
    assert texts(url) == expected

    begun = Event()
    with ThreadPoolExecutor(8) as pool, clients(url, 4) as statuses:
        ends = [pool.submit(streamed, url, begun, 400) for _ in range(8)]
        assert begun.wait(PATIENCE_S)
        deploy_as_configured(args, 1)
    assert statuses.keys() == {200}
    for end in ends:
        assert '"completion_tokens":400' in end.result()
        assert end.result().endswith("data: [DONE]\n\n")
    told.append(f"one has gone: {dict(statuses)}, and 8 streams ended")
    with capsys.disabled():
        print("\n" + "\n".join(told))
    assert texts(url) == expected


def _served(url: str) -> int:
    """How many replicas answer a burst."""
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda n: complete(url, n), range(48)))
    return len({answer.headers["x-replica"] for answer in answers})


def _wait_for_files(folder: Path) -> None:
    """Until all modules are written, which is in the background."""
    _wait(lambda: len([path for path in folder.rglob("*") if path.is_file()]) >= NUM_SCHEMAS)


def _wait(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(1)
