"""A schema folder that fails: prompts are answered from memory, writes say what is wrong."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from tests.entrypoints.test_schema_folder import front_end, schema
from vllm_promptcache.entrypoints import schema_folder
from vllm_promptcache.entrypoints.front_end import FrontEnd
from vllm_promptcache.entrypoints.schema_service import SchemaService
from vllm_promptcache.errors import NotFoundError, PMLError, ServerError
from vllm_promptcache.pml import parse_schema


def plan(front: FrontEnd, name: str = "a") -> int:
    """Plans a prompt; returns how many tokens its one module has."""
    planned = front.plan(f'<prompt schema="{name}"><m0/> end</prompt>')
    return planned.num_tokens - 1


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the folder logs."""
    messages: list[str] = []

    def note(text: str, *args: Any) -> None:
        messages.append(text % args)

    for level in ("error", "info"):
        monkeypatch.setattr(schema_folder.logger, level, note)
    return messages


@contextmanager
def impatient() -> Iterator[None]:
    """Makes the folder try again at once what it could not read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schema_folder, "_SECONDS_BETWEEN_TRIES", -1.0, raising=False)
        yield


def test_a_link_to_nowhere_is_logged_once(tmp_path: Path, logged: list[str]) -> None:
    service = SchemaService(front := front_end(tmp_path))
    service.add(schema("a", "x y"))
    (tmp_path / "x.pml").symlink_to(tmp_path / "nowhere")
    assert [plan(front) for _ in range(3)] == [2, 2, 2]
    with impatient():
        for _ in range(3):
            with pytest.raises(PMLError, match="there is no schema `x`"):
                plan(front, "x")
        assert len(logged) == 1
        assert "x.pml cannot be used" in logged[0]
        (tmp_path / "nowhere").write_text(schema("x", "1 2 3"))
        assert plan(front, "x") == 3
    assert logged[1:] == [f"{tmp_path / 'x.pml'} can be used again."]


def test_a_file_that_becomes_a_link_to_nowhere_keeps_its_schema(
    tmp_path: Path, logged: list[str]
) -> None:
    service = SchemaService(front := front_end(tmp_path))
    service.add(schema("a", "x y"))
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    os.replace(tmp_path / "link", tmp_path / "a.pml")
    assert [plan(front), plan(front)] == [2, 2]
    assert len(logged) == 1


def test_a_folder_that_goes_away_and_comes_back(tmp_path: Path, logged: list[str]) -> None:
    folder = tmp_path / "schemas"
    folder.mkdir()
    service = SchemaService(front := front_end(folder))
    service.add(schema("a", "x y"))
    folder.rename(tmp_path / "away")
    assert [plan(front) for _ in range(3)] == [2, 2, 2]
    assert len(logged) == 1
    assert "its schemas stay as they are" in logged[0]
    for write in (
        lambda: service.add(schema("b", "x")),
        lambda: service.replace("a", schema("a", "z")),
    ):
        with pytest.raises(ServerError, match=r"could not be kept: No such file.*\n.*writable"):
            write()
    assert plan(front) == 2
    (tmp_path / "away").rename(folder)
    service.add(schema("b", "x y z"))
    assert (plan(front), plan(front, "b")) == (2, 3)
    assert logged[1:] == [f"{folder} can be used again."]


def test_a_file_that_cannot_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = SchemaService(front := front_end(tmp_path))
    service.add(schema("a", "x y"))

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(ServerError, match="schema `a` could not be removed: Permission denied"):
        service.remove("a")
    assert plan(front) == 2


def test_a_pipe_in_the_folder_stops_nobody(tmp_path: Path, logged: list[str]) -> None:
    service = SchemaService(front := front_end(tmp_path))
    service.add(schema("a", "x y"))
    os.mkfifo(tmp_path / "pipe.pml")
    thread = Thread(target=plan, args=(front,), daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    with pytest.raises(NotFoundError):
        service.layout("pipe")
    assert "no regular file" in logged[0]


def test_only_what_a_prompt_asks_for_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one server's new schema is compiled in another one, that one's other prompts go on."""
    one, two = front_end(tmp_path), front_end(tmp_path)
    SchemaService(one).add(schema("a", "x y"))
    assert plan(two) == 2
    SchemaService(one).add(schema("slow", "x y z"))
    may_end, has_begun = Event(), Event()
    compile_schema = two.planner.schemas.compile

    def compile_slowly(tree: Any) -> Any:
        has_begun.set()
        assert may_end.wait(20)
        return compile_schema(tree)

    monkeypatch.setattr(two.planner.schemas, "compile", compile_slowly)
    plans: list[int] = []
    asking = Thread(target=lambda: plans.append(plan(two, "slow")), daemon=True)
    asking.start()
    assert has_begun.wait(20)
    others = Thread(target=lambda: plans.append(plan(two)), daemon=True)
    others.start()
    others.join(10)
    assert plans == [2]
    may_end.set()
    asking.join(20)
    assert plans == [2, 3]


def test_what_a_server_writes_wins_over_what_it_is_compiling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = front_end(tmp_path), front_end(tmp_path)
    SchemaService(one).add(schema("a", "x"))
    assert plan(two) == 1
    SchemaService(one).replace("a", schema("a", "x y"))
    compile_schema, newest = two.planner.schemas.compile, schema("a", "1 2 3")

    def compile_late(tree: Any) -> Any:
        parsed = parse_schema(newest)
        assert two.folder is not None
        two.folder.store(compile_schema(parsed), newest)
        return compile_schema(tree)

    monkeypatch.setattr(two.planner.schemas, "compile", compile_late)
    assert (plan(two), plan(one)) == (3, 3)
