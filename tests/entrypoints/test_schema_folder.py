"""The schema folder and the service behind the routes."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.layout.word_tokenizer import WordTokenizer
from tests.plan.planning import make_planner
from vllm_promptcache.entrypoints.front_end import FrontEnd
from vllm_promptcache.entrypoints.schema_folder import SchemaFolder
from vllm_promptcache.entrypoints.schema_service import SchemaService
from vllm_promptcache.errors import (
    ClientError,
    ConflictError,
    NotFoundError,
    PMLError,
    ServerError,
)


def schema(name: str, *texts: str) -> str:
    modules = "".join(f'<module name="m{i}">{text}</module>' for i, text in enumerate(texts))
    return f'<schema name="{name}">{modules}</schema>'


def front_end(path: Path | None) -> FrontEnd:
    planner = make_planner(WordTokenizer(), max_model_len=1000, block_size=4)
    folder = SchemaFolder(path, planner.schemas) if path else None
    if folder is not None:
        folder.load()
    cache = SimpleNamespace(block_size=4, num_gpu_blocks=100)
    config: Any = SimpleNamespace(cache_config=cache)
    return FrontEnd(planner, config, folder)


def names(service: SchemaService) -> list[str]:
    return [layout.name for layout in service.layouts()]


def describe(service: SchemaService, name: str) -> dict[str, Any]:
    return service.describe(service.layout(name))


def test_what_is_posted_is_kept_and_shared(tmp_path: Path) -> None:
    one, two = (SchemaService(front_end(tmp_path), 2) for _ in range(2))
    assert one.add(schema("a", "x y", "z")).is_new
    assert names(two) == ["a"]
    change = two.replace("a", schema("a", "x y", "z w"))
    assert (change.is_new, change.num_kept_tokens, change.num_changed_tokens) == (False, 2, 2)
    described = describe(one, "a")
    assert described["modules"][2].num_tokens == 2
    assert (described["policy"], described["reason"]) == ("primed", None)
    assert names(SchemaService(front_end(tmp_path))) == ["a"]
    one.remove("a")
    assert names(two) == []
    with pytest.raises(NotFoundError):
        two.remove("a")
    assert not list(tmp_path.iterdir())


def test_another_schema_of_the_name_is_a_conflict(tmp_path: Path) -> None:
    service = SchemaService(front_end(tmp_path))
    service.add(schema("a", "x"))
    assert not service.add(schema("a", "x")).is_new
    with pytest.raises(ConflictError, match="another schema `a`"):
        service.add(schema("a", "y"))
    with pytest.raises(ClientError, match="the address names `b`"):
        service.replace("b", schema("a", "y"))


def test_files_by_hand_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine.xml").write_text(schema("a", "x"))
    service = SchemaService(front_end(tmp_path))
    for write in (lambda: service.replace("a", schema("a", "y")), lambda: service.remove("a")):
        with pytest.raises(ConflictError, match="comes from the file"):
            write()
    assert describe(service, "a")["modules"][1].num_tokens == 1


def test_a_file_that_breaks_keeps_its_last_version(tmp_path: Path) -> None:
    service = SchemaService(front_end(tmp_path))
    service.add(schema("a", "x"))
    (tmp_path / "new").write_text("<schema")
    os.replace(tmp_path / "new", tmp_path / "a.pml")
    assert names(service) == ["a"]
    with pytest.raises(PMLError):
        front_end(tmp_path)


def test_a_folder_that_cannot_be_written_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = SchemaService(front_end(tmp_path))
    service.add(schema("a", "x"))

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device", "/secret/folder")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ServerError, match="No space left"):
        service.replace("a", schema("a", "y z"))
    assert describe(service, "a")["modules"][1].num_tokens == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.pml"]


def test_several_servers_need_a_folder() -> None:
    with pytest.raises(ConflictError, match="2 API servers"):
        SchemaService(front_end(None), 2).add(schema("a", "x"))
    assert SchemaService(front_end(None), 1).add(schema("a", "x")).is_new


def test_src_is_refused_over_http(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    text = '<schema name="a"><module name="m" src="secret.txt"/></schema>'
    with pytest.raises(PMLError, match="src"):
        SchemaService(front_end(tmp_path)).add(text)


def test_a_posted_schema_takes_nobody_elses_file(tmp_path: Path) -> None:
    (tmp_path / "by-hand.pml").write_text(schema("written", "x"))
    service = SchemaService(front_end(tmp_path))
    for write in (service.add, lambda text: service.replace("by-hand", text)):
        with pytest.raises(ConflictError, match=r"by-hand\.pml. is there, and holds"):
            write(schema("by-hand", "y"))
    with pytest.raises(NotFoundError):
        service.remove("by-hand")
    assert (tmp_path / "by-hand.pml").read_text() == schema("written", "x")
