"""Files that texts and comments name are in the repository."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
_MENTION = re.compile(r"`([\w./-]+\.py|docs/[\w.-]+)`")


def test_files_that_are_named_are_there() -> None:
    folders = ("vllm_promptcache", "kernels", "tests", "benchmarks", "packaging", "docs")
    sources = [path for folder in folders for path in (ROOT / folder).rglob("*.*")]
    names = [f"/{path.relative_to(ROOT)}" for path in sources] + ["/setup.py"]
    texts = [path for path in sources if path.suffix in (".py", ".md")]
    missing = [
        f"{path.relative_to(ROOT)} names {name}"
        for path in (*texts, ROOT / "README.md", ROOT / "CONTRIBUTING.md")
        for name in _MENTION.findall(path.read_text())
        if not any(known.endswith(f"/{name}") for known in names)
    ]
    assert missing == []
