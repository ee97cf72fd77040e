"""Imports of the package run one way; the front end needs neither torch nor vLLM."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rooms import PACKAGE, ROOMS, Module, circle, faults, modules, reach

PURE = ("sequence", "ranking", "pml", "layout", "plan")


def module(path: str, text: str) -> Module:
    return Module(Path(path), ast.parse(text))


@pytest.fixture(scope="module")
def found() -> list[Module]:
    return modules()


def test_the_table_runs_one_way_and_has_all_rooms(found: list[Module]) -> None:
    order = list(ROOMS)
    for room, others in ROOMS.items():
        assert all(order.index(other) < order.index(room) for other in others), room
        assert list(others) == sorted(others, key=lambda name: (name != PACKAGE, name)), room
    assert {one.room for one in found} == ROOMS.keys()
    assert [str(one.path) for one in found if one.room == PACKAGE] == ["__init__.py"]


def test_imports_keep_to_the_table(found: list[Module]) -> None:
    assert faults(found) == []


def test_no_files_import_each_other_in_a_circle(found: list[Module]) -> None:
    assert circle(found) == []


def test_scheduler_and_workers_need_neither_parser_nor_tokenizer() -> None:
    assert reach("connector") >= {"core", "steps", "store", "worker"}
    assert not reach("connector") & {"layout", "plan", "pml"}


@pytest.mark.parametrize("room", PURE)
def test_the_front_end_imports_neither_torch_nor_vllm(room: str, found: list[Module]) -> None:
    heavy = [
        f"{PACKAGE}/{one.path}:{i.line}: `{room}` may not import {i.name}"
        for one in found
        for i in one.imports
        if one.room == room and i.name.split(".")[0] in ("torch", "vllm")
    ]
    assert heavy == []
    names = [one.name for one in found if one.room == room]
    code = (
        "import importlib, json, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "print(json.dumps(sorted({'torch', 'vllm', 'triton'} & sys.modules.keys())))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("import vllm_promptcache.worker.host_store", "`worker` stands above `steps`"),
        ("def f():\n    from ..core import scheduler", "`core` stands above `steps`"),
        ("if TYPE_CHECKING:\n    from vllm_promptcache import plugin", "`plugin` stands above"),
        ("from vllm_promptcache.pml import Pin", "`steps` may import sequence, store, not `pml`"),
        ("from vllm_promptcache import LLM", "`vllm_promptcache` stands above"),
    ],
)
def test_an_import_against_the_table_is_told_with_its_place(text: str, rule: str) -> None:
    (fault,) = faults([module("steps/new.py", text)])
    line = 1 + text.count("\n")
    assert fault.startswith(f"vllm_promptcache/steps/new.py:{line}: ")
    assert rule in fault


def test_a_circle_is_told_file_by_file() -> None:
    files = [
        module("core/a.py", "from vllm_promptcache.core.b import x"),
        module("core/b.py", "def f():\n    from . import c"),
        module("core/c.py", "import vllm_promptcache.core.a"),
        module("core/d.py", "from vllm_promptcache.core import a"),
    ]
    names = [f"vllm_promptcache.core.{name}" for name in "abca"]
    assert circle(files) == names
    assert circle(files[1:]) == []
