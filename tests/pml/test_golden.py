"""Whole documents: a source, and the tree or the diagnostic expected from it beside it.

`UPDATE_GOLDEN=1 pytest tests/pml/test_golden.py` writes the expected files anew.
"""

import os
from pathlib import Path

import pytest

from tests.pml.dump import dump
from vllm_promptcache.errors import PMLError
from vllm_promptcache.pml import is_prompt, parse_prompt, parse_schema

GOLDEN = Path(__file__).parent / "golden"


def outcome(path: Path) -> str:
    text = path.read_bytes().decode("utf-8")
    try:
        if is_prompt(text):
            return dump(parse_prompt(text, name=path.name))
        return dump(parse_schema(text, name=path.name, base_dir=path.parent))
    except PMLError as error:
        return str(error)


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.pml")), ids=lambda path: path.stem)
def test_outcome_is_as_recorded(path: Path) -> None:
    expected = path.with_suffix(".expected")
    if os.environ.get("UPDATE_GOLDEN"):
        expected.write_text(outcome(path) + "\n", encoding="utf-8")
    assert outcome(path) + "\n" == expected.read_text(encoding="utf-8")
