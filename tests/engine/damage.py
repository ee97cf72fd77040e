"""Damages and swaps files of modules under an engine that reads them.

    python -m tests.engine.damage --files 1000 --seed 0

An engine without a folder says what the answers are. Engines with another model and with another
type of KV leave files of the same names. Then one engine runs in rounds: some of its files are
damaged, some are left whole, its caches are reset, and prompts ask for all modules. What its worker
reports as absent or found must be exactly those, and no answer may change.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from random import Random
from typing import Any

from tests.environment import prepare_environment

prepare_environment()

from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from vllm.distributed.kv_transfer import get_kv_transfer_group  # noqa: E402

from tests.engine.crash import SMALL_ENGINE, Answer, answer_of, is_same  # noqa: E402
from tests.engine.harness import (  # noqa: E402
    greedy,
    running_engine,
    scheduler_of,
)
from tests.families import LLAMA, SUPPORTED  # noqa: E402
from tests.generators import random_text  # noqa: E402
from tests.worker.test_module_file import MISSHAPEN, blocks_in, damaged, forged  # noqa: E402
from vllm_promptcache import LLM  # noqa: E402
from vllm_promptcache.steps.step import WorkerReport  # noqa: E402
from vllm_promptcache.worker.disk_store import MAX_NUM_WRITES  # noqa: E402
from vllm_promptcache.worker.module_file import SUFFIX  # noqa: E402

NUM_MODULES = 144
# Of the modules, in each round; the others' files are whole.
NUM_DAMAGED = 126
NUM_TOKENS = 4
# Same shapes as those of LLAMA, other weights.
OTHER_MODEL = next(family for family in SUPPORTED if family.name == "qwen2")

# The content of each file of a folder, by its name.
Files = dict[str, bytes]


@dataclass(frozen=True, slots=True)
class Originals:
    """Files that engines have written; those of one module have the same name.

    Attributes:
        own: Of the engine whose files are damaged.
        other_model: Of an engine with another model.
        other_dtype: Of an engine with another type of KV.
    """

    own: Files
    other_model: Files
    other_dtype: Files

    def swapped(self, name: str, rng: Random) -> bytes:
        """The file of another module."""
        return self.own[rng.choice([other for other in self.own if other != name])]


# What a damaged file holds: made from the originals, its name and random choices.
Damage = Callable[[Originals, str, Random], bytes]


def in_bytes(kind: int, files: Originals, name: str, rng: Random) -> bytes:
    """What `damaged` makes of a file."""
    return damaged(files.own[name], b"", kind, rng)


def in_header(files: Originals, name: str, rng: Random) -> bytes:
    """A flipped bit before the KV begins."""
    whole = files.own[name]
    size = 8 + int.from_bytes(whole[:8], "little")
    return damaged(whole[:size], b"", 1, rng) + whole[size:]


def of_another_shape(files: Originals, name: str, rng: Random) -> bytes:
    """Blocks that fit no KV cache of the engine, with a checksum that is right."""
    whole = files.own[name]
    return forged(whole, rng.choice(list(MISSHAPEN.values()))(blocks_in(whole)))


def of_odd_numbers(files: Originals, name: str, rng: Random) -> bytes:
    """More digits than Python reads."""
    return forged(files.own[name], blocks_in(files.own[name]), "9" * rng.randint(4301, 9999))


DAMAGES: Mapping[str, Damage] = {
    "truncated": partial(in_bytes, 0),
    "a bit flipped": partial(in_bytes, 1),
    "a bit of the header flipped": in_header,
    "zeroed in part": partial(in_bytes, 2),
    "names swapped": lambda files, name, rng: files.swapped(name, rng),
    "of another model": lambda files, name, rng: files.other_model[name],
    "of another shape": of_another_shape,
    "of odd numbers": of_odd_numbers,
    "of another type": lambda files, name, rng: files.other_dtype[name],
    "empty": lambda files, name, rng: b"",
    "zeros": lambda files, name, rng: bytes(len(files.own[name])),
    "random bytes": lambda files, name, rng: rng.randbytes(len(files.own[name])),
}


def schema() -> str:
    """Modules of one to some blocks."""
    rng = Random(0)
    texts = [random_text(rng, rng.randint(20, 120)) for _ in range(NUM_MODULES)]
    modules = "".join(f'<module name="m{i}">{text}</module>' for i, text in enumerate(texts))
    return f'<schema name="s"><union>{modules}</union></schema>'


def answers(llm: LLM) -> list[Answer]:
    """Asks for all modules, not more at once than files can wait to be written."""
    prompts = [f'<prompt schema="s"><m{i}/> Which?</prompt>' for i in range(NUM_MODULES)]
    found = []
    for start in range(0, NUM_MODULES, MAX_NUM_WRITES):
        few = prompts[start : start + MAX_NUM_WRITES]
        outputs = llm.generate(few, greedy(0, max_tokens=NUM_TOKENS), use_tqdm=False)
        found += [answer_of(output.outputs[0]) for output in outputs]
        wait_for_files(llm)
    scheduler_of(llm).check_integrity()
    return found


def wait_for_files(llm: LLM) -> None:
    """Waits until the worker has written what it was to."""
    if (disk := get_kv_transfer_group()._worker.host.disk) is not None:
        disk._executor.submit(lambda: None).result()


@contextmanager
def engine(model: Path, folder: Path | None = None, **engine_args: Any) -> Iterator[LLM]:
    """An engine that knows the schema and keeps modules in a folder."""
    options = {} if folder is None else {"dir": str(folder)}
    with running_engine(model, prompt_modules=options, **SMALL_ENGINE, **engine_args) as llm:
        llm.add_schema(schema())
        yield llm


def files_in(folder: Path) -> Files:
    """Modules' names and the contents of their files.

    Raises:
        AssertionError: Files are missing, or there are others.
    """
    paths = list(folder.glob("*/*"))
    assert len(paths) == NUM_MODULES, f"{len(paths)} files of {NUM_MODULES} modules"
    assert all(path.suffix == SUFFIX for path in paths)
    return {path.stem: path.read_bytes() for path in sorted(paths)}


def written_by_engine(model: Path, folder: Path, **engine_args: Any) -> Files:
    """All modules' files by an engine that is gone then."""
    with engine(model, folder, **engine_args) as llm:
        answers(llm)
    return files_in(folder)


@contextmanager
def reports(llm: LLM) -> Iterator[list[WorkerReport]]:
    """Yields a list that gets what the worker reports of files."""
    tiers, told = scheduler_of(llm).residency.tiers, []
    fetched = tiers.fetched

    def listening_fetched(report: WorkerReport) -> None:
        told.append(report)
        fetched(report)

    tiers.fetched = listening_fetched
    try:
        yield told
    finally:
        del tiers.fetched


def first_told(told: Sequence[WorkerReport]) -> dict[str, bool]:
    """Whether each file was found when it was first asked for.

    A module that was absent is encoded and written; if it leaves before its request is admitted, it
    is read again.
    """
    was_whole: dict[str, bool] = {}
    for report in told:
        for key in report.absent:
            was_whole.setdefault(key.hex(), False)
        for module in report.found:
            was_whole.setdefault(module.key.hex(), True)
    return was_whole


@dataclass(slots=True)
class DamagedFiles:
    """An engine whose files are damaged again and again.

    Attributes:
        llm: The engine.
        folder: Where its files are.
        originals: What they were, and what others have.
        expected: All answers.
        rng: Says what becomes of which file.
        num_files: Damaged files, by damage.
        num_served: Of these, those that the worker took for whole.
        counts: Whole files and answers, and how many of them were as they should be.
    """

    llm: LLM
    folder: Path
    originals: Originals
    expected: Sequence[Answer]
    rng: Random
    num_files: Counter[str] = field(default_factory=Counter)
    num_served: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)

    def run(self, num_files: int) -> None:
        """Damages as many files, over several rounds."""
        kinds = cycle(DAMAGES)
        while (left := num_files - self.num_files.total()) > 0:
            self.run_round(list(islice(kinds, min(left, NUM_DAMAGED))))

    def run_round(self, kinds: Sequence[str]) -> None:
        """Damages a file for each of `kinds`, and asks for all modules.

        Raises:
            AssertionError: The worker has not told of each file whether it is there.
        """
        names = self.rng.sample(list(self.originals.own), len(kinds))
        damages = dict(zip(names, kinds, strict=True))
        self._write(damages)
        assert self.llm.reset_prefix_cache()
        with reports(self.llm) as told:
            found = answers(self.llm)
        was_whole = first_told(told)
        assert was_whole.keys() == self.originals.own.keys()
        read = {name for name in was_whole if was_whole[name]}
        self.num_files.update(damages.values())
        self.num_served.update(kind for name, kind in damages.items() if name in read)
        whole = self.originals.own.keys() - damages.keys()
        self.counts["whole files"] += len(whole)
        self.counts["whole files read"] += len(whole & read)
        self.counts["answers"] += len(found)
        self.counts["answers equal"] += sum(map(is_same, found, self.expected))

    def _write(self, damages: Mapping[str, str]) -> None:
        """Writes all files, in place: damaged ones, and the others as they were."""
        for path in self.folder.glob("*/*"):
            content = self.originals.own[path.stem]
            if (kind := damages.get(path.stem)) is not None:
                content = DAMAGES[kind](self.originals, path.stem, self.rng)
                assert content != self.originals.own[path.stem], kind
            path.write_bytes(content)

    @property
    def is_good(self) -> bool:
        """Whether nothing wrong was served, and what was right was."""
        counts = self.counts
        return (
            not self.num_served.total()
            and counts["answers equal"] == counts["answers"]
            and counts["whole files read"] == counts["whole files"]
        )

    def show(self) -> None:
        """Prints the counts."""
        table = Table("damage", "files", "served")
        for kind in DAMAGES:
            table.add_row(kind, str(self.num_files[kind]), str(self.num_served[kind]))
        table.add_row("all", str(self.num_files.total()), str(self.num_served.total()))
        console = Console()
        console.print(table)
        counts = ", ".join(f"{number} {name}" for name, number in self.counts.items())
        console.print(counts, highlight=False)


def damage(folder: Path, num_files: int, seed: int) -> DamagedFiles:
    """Starts all engines, damages files below `folder`, and returns what came of it."""
    model, modules = LLAMA.save(folder / "model"), folder / "modules"
    with engine(model) as llm:
        expected = answers(llm)
    other = OTHER_MODEL.save(folder / "other-model")
    other_model = written_by_engine(other, folder / "of-other-model")
    other_dtype = written_by_engine(model, folder / "of-other-type", dtype="bfloat16")
    with engine(model, modules) as llm:
        assert all(map(is_same, answers(llm), expected))
        originals = Originals(files_in(modules), other_model, other_dtype)
        run = DamagedFiles(llm, modules, originals, expected, Random(seed))
        run.run(num_files)
    return run


def main() -> None:
    """Damages as many files as the command line says; exits with 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=1000, help="to be damaged")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = damage(Path(folder), args.files, args.seed)
    run.show()
    sys.exit(not run.is_good)


if __name__ == "__main__":
    main()
