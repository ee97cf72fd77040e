"""A few of the requests of `thrash`, in the smallest of its caches."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.harness import running_engine, scheduler_of
from tests.engine.thrash import ARGS, SIZES, at_once, make_asks, num_blocks_of, schemas
from tests.families import LLAMA

NUM_REQUESTS = 64


def test_no_request_is_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is answered, and as if it were alone."""
    model = LLAMA.save(tmp_path)
    args = ARGS | {
        "num_gpu_blocks_override": num_blocks_of(min(SIZES)),
        "scheduling_policy": "priority",
    }
    with running_engine(model, **args) as llm:
        for schema in schemas():
            llm.add_schema(schema)
        asks, _ = make_asks(llm, NUM_REQUESTS)
        alone = at_once(llm, asks, prompt=lambda ask: ask.pml, num_clients=1)
        assert alone.reasons == []
        assert llm.reset_prefix_cache()
        check = scheduler_of(llm).check_integrity
        found = at_once(llm, asks, prompt=lambda ask: ask.pml, has_priorities=True, check=check)
        assert found.reasons == []
        assert found.num_different([alone.answers[number] for number in range(NUM_REQUESTS)]) == 0
        check()
    with capsys.disabled():
        print(f"\nfirst token after {max(found.waits_s):.2f} s (longest)")
