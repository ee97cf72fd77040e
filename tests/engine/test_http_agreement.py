"""Answers of a live server, by OpenAI's client, token by token against the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.engine.scored import Plans, ScoredAnswer, ScoredEndpoints, differences
from tests.engine.server import running_server
from tests.engine.test_agreement import TOLERANCE
from tests.generators import FIXED_SCHEMAS, Case, CaseMaker
from tests.reference import Reference
from tests.reference.compare import Tally
from vllm_promptcache.errors import ClientError

NUM_PROMPTS = 50
MAX_TOKENS = 8

Call = Callable[[str], ScoredAnswer]


@pytest.fixture(scope="module")
def server(shallow: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("schemas")
    # The route that empties the KV cache is for development only.
    with (
        running_server(shallow, folder, env={"VLLM_SERVER_DEV_MODE": "1"}) as url,
        httpx.Client(base_url=url, timeout=120) as client,
    ):
        yield client


def test_fifty_prompts_agree_with_the_reference(
    server: httpx.Client, shallow: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half of them completions, half of them chats; each with nothing resident, then with all."""
    for schema in FIXED_SCHEMAS:
        answer = server.put(f"/v1/prompt_schemas/{schema.name}", json={"schema": schema.pml})
        assert answer.status_code == 201, answer.text
    plans, reference = Plans(shallow, FIXED_SCHEMAS), Reference(shallow)
    ask = ScoredEndpoints(str(server.base_url).rstrip("/"), MAX_TOKENS)
    cases = [(ask.completion, case) for case in make_cases(plans.completion)]
    cases += [(ask.chat, case) for case in make_cases(plans.chat)]
    cold, warm = Tally(TOLERANCE), Tally(TOLERANCE)
    # The reference computes one prompt while the server computes the next ones.
    with ThreadPoolExecutor(1) as pool:
        answers = pool.map(lambda item: ask_twice(server, *item), cases)
        for (_, case), pair in zip(cases, answers, strict=True):
            found = differences(reference, case.explanation, pair)
            for tally, difference in zip((cold, warm), found, strict=True):
                tally.add(case.pml, difference)
    with capsys.disabled():
        print(f"\nby HTTP, cold: {cold}; warm: {warm}")
    assert (cold.num_outputs, warm.num_outputs) == (NUM_PROMPTS, NUM_PROMPTS)
    assert not cold.wrong
    assert not warm.wrong


def make_cases(explain: Callable[[str], dict[str, Any]]) -> list[Case]:
    """Half of the prompts, over all schemas in turn."""
    maker = CaseMaker(0, explain, ClientError)
    return [maker.prompt(schema) for schema in islice(cycle(FIXED_SCHEMAS), NUM_PROMPTS // 2)]


def ask_twice(server: httpx.Client, call: Call, case: Case) -> tuple[ScoredAnswer, ScoredAnswer]:
    """Asks with an empty KV cache and again; checks what the server says it found there."""
    assert server.post("/reset_prefix_cache").status_code == 200
    cold, warm = call(case.pml), call(case.pml)
    explanation = case.explanation
    assert cold.num_prompt_tokens == warm.num_prompt_tokens == explanation["num_tokens"]
    assert cold.num_cached_tokens == 0
    assert warm.num_cached_tokens >= explanation["num_cached_tokens"]
    return cold, warm
