"""Two data-parallel ranks: requests of one schema stay on one, and load spreads over both."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice
from pathlib import Path
from random import Random

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.engine.scored import Plans, ScoredAnswer, ScoredEndpoints, differences
from tests.engine.server import running_server
from tests.engine.test_agreement import TOLERANCE
from tests.generators import FIXED_SCHEMAS, Case, CaseMaker
from tests.reference import Reference
from tests.reference.compare import Tally
from vllm_promptcache.errors import ClientError

# As many API servers as ranks, as is vLLM's default: each has a memory of its own.
OPTIONS = ["--data-parallel-size=2", "--api-server-count=2"]
SCHEMAS = [schema for schema in FIXED_SCHEMAS if schema.name in ("library", "documents")]
PROMPTS_A_SCHEMA = 4
# More than a rank gets ahead of the other one, even if one rank holds the modules of both schemas.
NUM_CONCURRENT = 24
MAX_TOKENS = 8


@pytest.fixture(scope="module")
def url(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("schemas")
    for schema in SCHEMAS:
        (folder / f"{schema.name}.pml").write_text(schema.pml)
    with running_server(smollm2, folder, *OPTIONS) as address:
        yield address


@pytest.fixture(scope="module")
def reference(smollm2: Path) -> Reference:
    return Reference(smollm2)


@pytest.fixture(scope="module")
def cases(smollm2: Path) -> list[Case]:
    maker = CaseMaker(0, Plans(smollm2, SCHEMAS).completion, ClientError)
    cases: list[Case] = []
    for schema in SCHEMAS:
        made = (maker.prompt(schema) for _ in count())
        cases += islice(filter(shares_its_modules, made), PROMPTS_A_SCHEMA)
    return cases


def shares_its_modules(case: Case) -> bool:
    """Whether the modules of a prompt are those of the schema, neither moved nor chained."""
    modules, new = case.explanation["modules"], case.explanation["new"]
    own = [position for module in modules for position in module["position_ids"]]
    text = (part["position_ids"][0] for part in new if part["kind"] == "text")
    is_chained = 'encode="exact"' in case.pml
    return not is_chained and bool(own) and min(text, default=max(own) + 1) > max(own)


def test_a_schema_stays_on_one_rank(
    url: str, cases: list[Case], reference: Reference, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cold and warm answers are right, and no module is encoded twice."""
    ask = ScoredEndpoints(url, MAX_TOKENS).completion
    tally = Tally(TOLERANCE)
    for case in cases:
        cold, warm = ask(case.pml), ask(case.pml)
        assert warm.token_ids == cold.token_ids
        assert warm.num_cached_tokens >= case.explanation["num_cached_tokens"]
        add(tally, reference, case, cold, warm)
    expected = num_modules(cases)
    wait_until(lambda: misses(url).total() >= expected.total())
    found = misses(url)
    with capsys.disabled():
        print(f"\none at a time: {tally}; modules encoded by schema and rank: {dict(found)}")
    assert not tally.wrong
    assert {schema: number for (schema, _), number in found.items()} == expected
    assert len(found) == len(SCHEMAS)


def test_load_uses_both_ranks(
    url: str, cases: list[Case], reference: Reference, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = ScoredEndpoints(url, MAX_TOKENS).completion
    asked = cases * (NUM_CONCURRENT // len(cases))
    Random(0).shuffle(asked)
    before, tally = num_answered(url), Tally(TOLERANCE)
    with ThreadPoolExecutor(NUM_CONCURRENT) as pool:
        answers = list(pool.map(lambda case: ask(case.pml), asked))
    for case, answer in zip(asked, answers, strict=True):
        add(tally, reference, case, answer)
    wait_until(lambda: (num_answered(url) - before).total() >= NUM_CONCURRENT)
    found = num_answered(url) - before
    with capsys.disabled():
        print(f"\n{NUM_CONCURRENT} at once: {tally}; requests by rank: {dict(found)}")
    assert not tally.wrong
    assert found.total() == NUM_CONCURRENT
    assert set(found) == {"0", "1"}


def add(tally: Tally, reference: Reference, case: Case, *answers: ScoredAnswer) -> None:
    """Compares the answers to a prompt with the reference."""
    for difference in differences(reference, case.explanation, answers):
        tally.add(case.pml, difference)


def num_modules(cases: list[Case]) -> Counter[str]:
    """How many modules the prompts of each schema read, those of several prompts once."""
    read = set()
    for case in cases:
        modules = case.explanation["modules"]
        for module in modules:
            # Behind something else it is another one.
            context = tuple((modules[i]["path"], num_tokens) for i, num_tokens in module["context"])
            if any(module["reused"]):
                read.add((case.explanation["schema"], module["path"], context))
    return Counter(schema for schema, *_ in read)


def misses(url: str) -> Counter[tuple[str, ...]]:
    """Modules that were encoded, by schema and rank."""
    return metric(url, "promptcache_module_misses_total", "schema", "engine")


def num_answered(url: str) -> Counter[str]:
    """Requests that were answered, by rank."""
    found = metric(url, "vllm:request_success_total", "engine")
    return Counter({rank: number for (rank,), number in found.items()})


def metric(url: str, name: str, *labels: str) -> Counter[tuple[str, ...]]:
    """The values of a counter that are not zero, summed by these labels."""
    values: Counter[tuple[str, ...]] = Counter()
    for family in text_string_to_metric_families(httpx.get(f"{url}/metrics").text):
        for sample in family.samples:
            if sample.name == name and sample.value:
                values[tuple(sample.labels[label] for label in labels)] += int(sample.value)
    return values


def wait_until(is_true: Callable[[], bool]) -> None:
    """Waits a little: counts travel with the next output, and may never come."""
    deadline = time.monotonic() + 3
    while not is_true() and time.monotonic() < deadline:
        time.sleep(0.1)
