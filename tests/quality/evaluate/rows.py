"""Rows and files of made-up data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vllm_promptcache.quality.evaluate.data import Row

DOCS = (
    "The ferry to Arran leaves at nine & takes an hour.",
    "In the village of Oban <the old one> there is a bakery.",
    "The museum is closed on Mondays.",
)


def line(number: int = 0, **fields: Any) -> dict[str, Any]:
    """A line of a file, as a dict."""
    defaults = {
        "id": f"r{number}",
        "metric": "f1",
        "docs": list(DOCS),
        "question": "When does the ferry leave?",
        "answers": ["nine", "at nine"],
    }
    return defaults | fields


def row(number: int = 0, **fields: Any) -> Row:
    """A row."""
    return Row.model_validate_json(json.dumps(line(number, **fields)))


def write(path: Path, *lines: dict[str, Any]) -> Path:
    """Writes lines to a file."""
    path.write_text("".join(json.dumps(each) + "\n" for each in lines), encoding="utf-8")
    return path
