"""Copies of a schema folder: what is written through one is in all of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from vllm_promptcache.distributed.file_tree import FileTree
from vllm_promptcache.distributed.registry import SchemaRegistry
from vllm_promptcache.distributed.schema_copy import SchemaCopy

OLD, NEW = b"<schema name='a'>old</schema>", b"<schema name='a'>new</schema>"


@asynccontextmanager
async def copies(
    folder: Path, number: int
) -> AsyncIterator[tuple[SchemaRegistry, list[SchemaCopy]]]:
    registry = SchemaRegistry(tree(folder / "registry"), patience_s=5)
    changes, put = registry.changes, registry.put
    made = [
        SchemaCopy(n, tree(folder / n), changes, put) for n in map("copy-{}".format, range(number))
    ]
    tasks = [asyncio.create_task(registry.watch())]
    tasks += [asyncio.create_task(copy.follow()) for copy in made]
    await asyncio.sleep(0.05)
    try:
        yield registry, made
    finally:
        for task in tasks:
            task.cancel()


def tree(folder: Path) -> FileTree:
    folder.mkdir(exist_ok=True)
    return FileTree(folder)


def test_what_is_published_is_everywhere(tmp_path: Path) -> None:
    async def run() -> None:
        async with copies(tmp_path, 3) as (registry, (first, *others)):
            first.tree.write("a.pml", OLD)
            assert await first.publish()
            for each in (registry, *others):
                assert each.tree.read("a.pml") == OLD
            first.tree.remove("a.pml")
            assert await first.publish()
            for each in (registry, *others):
                assert each.tree.read("a.pml") is None

    asyncio.run(run())


def test_of_two_writers_one_is_told_that_it_lost(tmp_path: Path) -> None:
    async def run() -> None:
        async with copies(tmp_path, 2) as (registry, (first, second)):
            first.tree.write("a.pml", OLD)
            second.tree.write("a.pml", NEW)
            taken = await asyncio.gather(first.publish(), second.publish())
            assert sorted(taken) == [False, True]
            winner = OLD if taken[0] else NEW
            for each in (registry, first, second):
                assert each.tree.read("a.pml") == winner

    asyncio.run(run())


def test_two_writers_of_different_files_do_not_wait_for_each_other(tmp_path: Path) -> None:
    async def run() -> None:
        async with copies(tmp_path, 2) as (registry, (first, second)):
            first.tree.write("a.pml", OLD)
            second.tree.write("b.pml", NEW)
            async with asyncio.timeout(3):
                assert await asyncio.gather(first.publish(), second.publish()) == [True, True]
            for each in (registry, first, second):
                assert sorted(each.tree.digests()) == ["a.pml", "b.pml"]

    asyncio.run(run())


def test_an_unpublished_file_is_not_overwritten(tmp_path: Path) -> None:
    """It is being written through this copy, and is published next."""

    async def run() -> None:
        async with copies(tmp_path, 2) as (_, (first, second)):
            first.tree.write("a.pml", OLD)
            second.tree.write("b.pml", OLD)
            assert await second.publish()
            assert first.tree.read("a.pml") == OLD
            assert await first.publish()
            assert second.tree.read("a.pml") == OLD

    asyncio.run(run())


def test_files_that_others_put_into_the_folder_are_noticed(tmp_path: Path) -> None:
    async def run() -> None:
        async with copies(tmp_path, 1) as (registry, (copy,)):
            (registry.tree.root / "texts").mkdir()
            (registry.tree.root / "texts" / "t.txt").write_text("a text")
            (registry.tree.root / ".hidden.pml").write_text("on its way")
            async with asyncio.timeout(3):
                while not copy.tree.digests():
                    await asyncio.sleep(0.02)
            assert copy.tree.read("texts/t.txt") == b"a text"
            assert list(copy.tree.digests()) == ["texts/t.txt"]

    asyncio.run(run())


def test_a_copy_that_has_died_is_waited_for_once(tmp_path: Path) -> None:
    async def run() -> None:
        registry = SchemaRegistry(tree(tmp_path / "registry"), patience_s=0.2)
        assert await registry.changes("dead", {"x": "y"}) is not None
        loop = asyncio.get_running_loop()
        for name, least, most in (("a.pml", 0.1, 2), ("b.pml", 0, 0.1)):
            begin = loop.time()
            assert await registry.put("mine", name, NEW, None)
            assert least <= loop.time() - begin <= most

    asyncio.run(run())


def test_a_registry_that_is_started_again_has_the_folder(tmp_path: Path) -> None:
    async def run() -> None:
        async with copies(tmp_path, 1) as (registry, (copy,)):
            copy.tree.write("a.pml", OLD)
            assert await copy.publish()
            again = SchemaRegistry(FileTree(registry.tree.root))
            copy.changes, copy.put = again.changes, again.put
            copy.tree.write("a.pml", NEW)
            assert await copy.publish()
            assert again.tree.read("a.pml") == NEW

    asyncio.run(run())


def test_no_file_outside_the_folder_is_touched(tmp_path: Path) -> None:
    inside = tree(tmp_path / "registry")
    with pytest.raises(ValueError, match="no file of the schema folder"):
        inside.write("../outside.pml", NEW)
    assert not (tmp_path / "outside.pml").exists()
