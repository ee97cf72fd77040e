"""`promptcache-compat`: whether another vLLM has what the hooks rely on, by its source."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from vllm_promptcache.compat.comparison import Change, compare, signature_of
from vllm_promptcache.compat.definition import Definition
from vllm_promptcache.compat.source import Source


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a report; returns 1 if something is missing, or changed and not answered."""
    sources = _parse(arguments)
    new, old = sources if len(sources) == 2 else (*sources, Source.installed())
    changes = compare(new, old)
    print("\n".join(_report(changes, new.version, old.version)))
    return int(any(not (change.is_same or change.answer) for change in changes))


def _parse(arguments: Sequence[str] | None) -> list[Source]:
    parser = argparse.ArgumentParser("promptcache-compat", description=__doc__)
    parser.add_argument(
        "--source",
        type=Path,
        action="append",
        required=True,
        metavar="DIR",
        help="an unpacked wheel or a source tree of vLLM: the folder that holds its package; a "
        "second one is what it is compared with, by default the vLLM that is installed",
    )
    folders = parser.parse_args(arguments).source
    if len(folders) > 2:
        parser.error("two sources at most can be compared")
    for folder in folders:
        if not (folder / "vllm" / "__init__.py").is_file():
            parser.error(f"{folder} holds no package vllm; name the folder above it")
    return [Source(folder) for folder in folders]


def _report(changes: Sequence[Change], new: str, old: str) -> Iterator[str]:
    same = [change for change in changes if change.is_same]
    num_other = sum(change.has_other_source for change in same)
    missing = [change for change in changes if change.new is None]
    changed = [change for change in changes if change.new and not change.is_same]
    yield f"vLLM {new} against {old}: {len(changes)} names that prompt modules rely on"
    yield f"same signature: {len(same)}, of these {num_other} with other code behind it"
    yield f"signature changed: {len(changed)}"
    for change in changed:
        yield f"  {change.name}"
        yield f"    {old}: {_signature(change.old)}"
        yield f"    {new}: {_signature(change.new)}"
        yield f"    {change.answer or 'NOT ANSWERED'}"
    yield f"missing: {len(missing)}"
    yield from (f"  {change.name}" for change in missing)


def _signature(found: Definition | None) -> str:
    return ", ".join(signature_of(found)) if found else "missing"


if __name__ == "__main__":
    sys.exit(main())
