"""How many schemas may be posted, and how large they may be."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.entrypoints.test_schema_folder import front_end, schema
from vllm_promptcache.entrypoints.schema_limits import SchemaLimits
from vllm_promptcache.entrypoints.schema_service import SchemaService
from vllm_promptcache.errors import ConflictError

LONG = "word " * 100


def service(path: Path, **limits: int) -> SchemaService:
    return SchemaService(front_end(path), limits=SchemaLimits(**limits))


def test_no_more_schemas_than_may_be(tmp_path: Path) -> None:
    some = service(tmp_path, max_num=2)
    for name in "ab":
        some.add(schema(name, "x"))
    message = r"there are 2 schemas, and there may be 2\n.*--prompt-schemas-max-count"
    for write in (some.add, lambda text: some.replace("c", text)):
        with pytest.raises(ConflictError, match=message):
            write(schema("c", "x"))
    assert not (tmp_path / "c.pml").exists()
    some.replace("b", schema("b", "y"))
    some.remove("a")
    some.add(schema("c", "x"))


def test_no_more_memory_than_may_be(tmp_path: Path) -> None:
    some = service(tmp_path, max_bytes=20_000)
    some.add(schema("a", LONG))
    some.add(schema("b", LONG))
    for _ in range(5):  # What is replaced does not count.
        some.replace("a", schema("a", LONG))
        some.replace("a", schema("a", LONG + "more"))
    message = r"takes 5\d KiB of memory, the others \d KiB, and all may take 20 KiB\n.*-max-size"
    with pytest.raises(ConflictError, match=message):
        some.replace("a", schema("a", LONG * 9))
    assert some.layout("a").num_kept_tokens == 101
    some.replace("a", schema("a", "x"))


def test_what_is_too_much_already_may_shrink(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.pml").write_text(schema(name, LONG))
    some = service(tmp_path, max_num=1, max_bytes=10)
    with pytest.raises(ConflictError):
        some.replace("a", schema("a", LONG, "x"))
    some.remove("b")
    some.replace("a", schema("a", "x"))
