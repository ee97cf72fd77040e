"""Every document that a test here reads is read by reader and grammar, which must agree."""

from __future__ import annotations

import pytest

from tests.pml.readers import agreed
from vllm_promptcache.pml import Limits, Source, markup
from vllm_promptcache.pml.elements import Element
from vllm_promptcache.pml.reader import read_well_formed

# Longer ones are tests of time or memory.
MAX_LEN = 10_000


@pytest.fixture(autouse=True)
def _read_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(source: Source, limits: Limits) -> Element | None:
        is_short = len(source.text) <= MAX_LEN
        return agreed(source, limits) if is_short else read_well_formed(source, limits)

    monkeypatch.setattr(markup, "read_well_formed", read)
