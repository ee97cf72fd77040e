"""Two real replicas behind one address. Run by `make test-ray`; takes minutes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import pytest

from tests.distributed.cluster import children, counted, kill, names, running_app
from tests.engine.scored import Plans, ScoredEndpoints, differences
from tests.families import LLAMA
from tests.generators import FIXED_SCHEMAS, CaseMaker
from tests.reference import Reference
from tests.reference.compare import Tally
from vllm_promptcache.distributed.batch import BatchJob
from vllm_promptcache.distributed.batch_rows import answers
from vllm_promptcache.errors import ClientError

pytestmark = pytest.mark.ray

NUM_PROMPTS = 100
MAX_TOKENS = 8
MARGIN = 4
NUM_ROWS = 500
NUM_JOB_SCHEMAS = 5
# Without modules that a role or an argument puts elsewhere.
SCHEMAS = FIXED_SCHEMAS
DOCUMENT = "the river runs behind the house and the old road to the town " * 6


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return LLAMA.save(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("schemas")
    for schema in SCHEMAS:
        (found / f"{schema.name}.pml").write_text(schema.pml)
    return found


@pytest.fixture(scope="module")
def url(model: Path, folder: Path) -> Iterator[str]:
    options = ["--replicas=2", f"--prompt-schemas={folder}", f"--margin={MARGIN}"]
    with running_app([str(model), *options]) as address:
        yield address


def schema(name: str, text: str = DOCUMENT) -> str:
    return f"<schema name='{name}'>Read. <module name='a'>{text}</module></schema>"


def complete(url: str, name: str, **others: Any) -> httpx.Response:
    body = {"model": "smol", "prompt": f"<prompt schema='{name}'><a/> What?</prompt>"}
    return httpx.post(f"{url}/v1/completions", json=body | others, timeout=120)


def put(url: str, name: str, text: str = DOCUMENT) -> httpx.Response:
    body = {"schema": schema(name, text)}
    return httpx.put(f"{url}/v1/prompt_schemas/{name}", json=body, timeout=120)


def test_prompts_agree_with_the_reference(
    url: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    maker = CaseMaker(0, Plans(model, SCHEMAS).completion, ClientError)
    cases = [maker.prompt(each) for each in islice(cycle(SCHEMAS), NUM_PROMPTS)]
    ask, reference, tally = ScoredEndpoints(url, MAX_TOKENS).completion, Reference(model), Tally()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda case: ask(case.pml), cases))
    for case, answer in zip(cases, answers, strict=True):
        for difference in differences(reference, case.explanation, [answer]):
            tally.add(case.pml, difference)
    with capsys.disabled():
        print(f"\n{tally}")
    assert tally.num_outputs == NUM_PROMPTS
    assert not tally.wrong


def test_a_schema_that_is_put_is_in_all_replicas_and_stays_on_one(url: str) -> None:
    written = [f"put-{n}" for n in range(6)]
    for name in written:
        assert put(url, name).status_code == 201
    where = defaultdict[str, set[str]](set)
    for name in written * 3:
        answer = complete(url, name)
        assert answer.status_code == 200, answer.text
        where[name].add(answer.headers["x-replica"])
    assert {len(found) for found in where.values()} == {1}
    assert put(url, written[0], f"other {DOCUMENT}").status_code == 200
    # Whatever replica answers has the new one.
    seen = Counter[str]()
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: complete(url, written[0]), range(32)))
    for answer in answers:
        seen[answer.headers["x-replica"]] += 1
        assert (
            answer.json()["usage"]["prompt_tokens"]
            != complete(url, written[1]).json()["usage"]["prompt_tokens"]
        )
    assert len(seen) == 2, "a burst spills"
    assert httpx.delete(f"{url}/v1/prompt_schemas/{written[1]}").status_code == 204
    assert complete(url, written[1]).status_code == 400


def test_errors_are_those_of_one_machine(url: str) -> None:
    missing = complete(url, "nope")
    assert missing.status_code == 400
    assert "there is no schema `nope`" in missing.json()["error"]["message"]
    assert httpx.put(f"{url}/v1/prompt_schemas/x", json={"schema": "<schema"}).status_code == 400
    assert httpx.get(f"{url}/tokenize").status_code == 404
    assert httpx.get(f"{url}/v1/models").json()["data"][0]["id"] == "smol"


def test_a_registry_that_dies_comes_back_with_the_schemas(url: str, folder: Path) -> None:
    put(url, "before").raise_for_status()
    kill("registry")
    assert complete(url, "before").status_code == 200
    deadline = time.monotonic() + 60
    while put(url, "after").status_code not in (200, 201):
        assert time.monotonic() < deadline
        time.sleep(1)
    assert {"before.pml", "after.pml"} <= {path.name for path in folder.iterdir()}
    assert complete(url, "after").status_code == 200


def test_a_batch_job_that_is_killed_goes_on_where_it_was(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each row is answered once, a bad one ends no job, a module is encoded once a replica."""
    for n in range(NUM_JOB_SCHEMAS):
        put(url, f"job-{n}", f"{n} {DOCUMENT}").raise_for_status()
    rows: list[str] = ["no JSON"]
    for n in range(NUM_ROWS - 1):
        prompt = f"<prompt schema='job-{n % NUM_JOB_SCHEMAS}'><a/> Row {n}?</prompt>"
        body = {"model": "smol", "prompt": prompt, "max_tokens": 2}
        rows.append(json.dumps({"custom_id": f"r{n}", "url": "/v1/completions", "body": body}))
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(rows))
    module = "vllm_promptcache.distributed.batch_command"
    command = [sys.executable, "-m", module, str(source), str(target), "--concurrency=8"]
    before = counted("promptcache_tokens_encoded_total")

    job = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(found := list(answers(BatchJob(source, target).parts))) < NUM_ROWS // 5:
        assert job.poll() is None
        time.sleep(0.1)
    job.kill()
    again = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    # What was on its way to the killed job may still have been written down.
    first = int(again.split()[0])
    assert len(found) <= first < NUM_ROWS

    lines = [json.loads(line) for line in target.read_text().splitlines()]
    assert len({line["custom_id"] for line in lines}) == len(lines) == NUM_ROWS
    assert sum(line["error"] is not None for line in lines) == 1
    assert not BatchJob(source, target).parts.exists()
    after = counted("promptcache_tokens_encoded_total")
    encoded = [after[name] - before[name] for name in after]
    with capsys.disabled():
        print(f"\nkilled after {first} rows; then: {again.strip()}; tokens encoded: {encoded}")
    num_tokens = NUM_JOB_SCHEMAS * _num_cached_tokens(url, "job-0")
    assert max(encoded) <= num_tokens


def _num_cached_tokens(url: str, name: str) -> int:
    usage = complete(url, name).json()["usage"]
    tokens: int = usage["prompt_tokens_details"]["cached_tokens"]
    return tokens


def test_no_request_is_lost_when_a_replica_dies(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Requests under way are answered elsewhere; streams that have begun end with an error."""
    put(url, "killed").raise_for_status()
    holder = complete(url, "killed").headers["x-replica"]
    orphans = children("replicas")
    begun, statuses = Event(), Counter[int]()

    def stream() -> str:
        body = {"model": "smol", "prompt": "<prompt schema='killed'><a/> Why?</prompt>"}
        body |= {"stream": True, "max_tokens": 500, "ignore_eos": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=120) as answer:
            text = ""
            for piece in answer.iter_text():
                text += piece
                begun.set()
        return text

    def client(number: int) -> None:
        for _ in range(6):
            statuses[complete(url, "killed", max_tokens=16).status_code] += 1

    with ThreadPoolExecutor(9) as pool:
        streamed = pool.submit(stream)
        assert begun.wait(60)
        running = [pool.submit(client, number) for number in range(8)]
        time.sleep(0.5)
        kill("replicas", holder)
        for each in running:
            each.result()
        end = streamed.result()
    with capsys.disabled():
        print(f"\nstatuses: {dict(statuses)}; the stream's end: {end[-160:]!r}")
    assert statuses == {200: 48}
    assert '"code":503' in end.rpartition("data: ")[2]
    assert complete(url, "killed").headers["x-replica"] != holder
    deadline = time.monotonic() + 240
    while len(names("replicas")) < 2 or _alive(orphans - children("replicas")):
        assert time.monotonic() < deadline, "no new replica, or the old one's engine lives on"
        time.sleep(1)


def _alive(pids: set[int]) -> set[int]:
    return {pid for pid in pids if Path(f"/proc/{pid}").exists()}
