"""Tiny source trees that stand for vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vllm_promptcache.compat.source import Source


def write(root: Path, modules: Mapping[str, str]) -> Source:
    """Writes a tree; modules are named by their paths in the package, without the ending."""
    for name, text in modules.items():
        path = root / "vllm" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Source(root)
