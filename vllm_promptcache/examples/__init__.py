"""Schemas and prompts for the paper's use cases (Gim et al., section 5.6), in words of our own.

`travel.pml` and `code.pml` are the schemas; `skirmish` holds source files that `code.pml` reads.
"""

from __future__ import annotations

from pathlib import Path

SCHEMA_FOLDER = Path(__file__).parent
SCHEMAS = ("travel", "code")


def schema_path(name: str) -> Path:
    """The file of a schema of `SCHEMAS`."""
    return SCHEMA_FOLDER / f"{name}.pml"


def prompt_paths(name: str) -> list[Path]:
    """The files of a schema's prompts, in the order in which the demo runs them."""
    return sorted((SCHEMA_FOLDER / "prompts" / name).glob("*.pml"))
