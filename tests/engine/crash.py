"""Kills engines that write modules to disk, and asks the next one on the same folder.

    python -m tests.engine.crash --kills 50

Every engine first answers a fixed set of prompts, then goes on in an endless list of rounds, each
with modules of its own. It begins with the last round that the engine before it has finished, so
that it reads the files that were written last. An engine that starts on no folder says what the
answers are. Every second kill waits for a file that is being written.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, count
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path
from random import Random
from typing import Any

from tests.environment import prepare_environment

prepare_environment()

# Imported before the fork: each engine's process would need seconds for it.
from safetensors import safe_open  # noqa: E402

from tests.engine.harness import (  # noqa: E402
    ENGINE_ARGS,
    MODULES_ALONE,
    greedy,
    scheduler_of,
)
from tests.families import LLAMA  # noqa: E402
from tests.generators import random_text  # noqa: E402
from tests.reference.compare import TOLERANCE  # noqa: E402
from vllm_promptcache import LLM  # noqa: E402
from vllm_promptcache.worker.module_file import (  # noqa: E402
    SUFFIX,
    TEMPORARY_SUFFIX,
    InvalidFileError,
    ModuleFile,
)

FIXED_ROUND = 0
NUM_FIXED = 24
NUM_MODULES = 12
NUM_TOKENS = 6
# The pool holds a third of the fixed modules, host memory about as many, and the folder those of
# some hundred rounds: files are deleted as well.
SMALL_ENGINE = {
    "block_size": 32,
    "num_gpu_blocks_override": 40,
    "kv_cache_memory_bytes": 16 << 20,
    "max_model_len": 1024,
    "max_num_seqs": 8,
    "disable_log_stats": True,
}
HOST_MEMORY = (1 << 20) / 2**30
DIR_SIZE = (128 << 20) / 2**30
MAX_SERVE_S = 1.5
MAX_AIM_S = 1.0
MAX_START_S = 240.0

# Tokens of an answer, and their log-probabilities.
Answer = tuple[tuple[int, ...], tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class Served:
    """What an engine tells after each round.

    Attributes:
        number: The round.
        answers: One for each of its prompts.
        num_encodes: Modules encoded since the engine started.
        num_fetches: Modules read from disk since then.
    """

    number: int
    answers: list[Answer]
    num_encodes: int
    num_fetches: int


def round_of(number: int) -> tuple[str, list[str]]:
    """Schema and prompts of a round; always the same."""
    rng, name = Random(number), f"round-{number}"
    num_modules = NUM_FIXED if number == FIXED_ROUND else NUM_MODULES
    texts = [random_text(rng, rng.randint(20, 250)) for _ in range(num_modules)]
    modules = "".join(f'<module name="m{i}">{text}</module>' for i, text in enumerate(texts))
    prompts = [f'<prompt schema="{name}"><m{i}/> Which?</prompt>' for i in range(num_modules)]
    return f'<schema name="{name}"><union>{modules}</union></schema>', prompts


def serve_round(llm: LLM, number: int) -> Served:
    """Answers the prompts of a round, all at once."""
    schema, prompts = round_of(number)
    name = llm.add_schema(schema).name
    outputs = llm.generate(prompts, greedy(0, max_tokens=NUM_TOKENS), use_tqdm=False)
    llm.remove_schema(name)
    scheduler = scheduler_of(llm)
    scheduler.check_integrity()
    residency = scheduler.residency
    answers = [answer_of(output.outputs[0]) for output in outputs]
    num_fetches = residency.store.stats.num_fetches
    return Served(number, answers, residency.encodes.num_started, num_fetches)


def answer_of(completion: Any) -> Answer:
    """Tokens of an output and how probable each was."""
    token_ids = tuple(completion.token_ids)
    steps = zip(completion.logprobs, token_ids, strict=True)
    return token_ids, tuple(step[token_id].logprob for step, token_id in steps)


def is_same(ours: Answer, expected: Answer) -> bool:
    """Whether two answers differ by rounding only."""
    pairs = zip(ours[1], expected[1], strict=False)
    return ours[0] == expected[0] and all(abs(a - b) <= TOLERANCE for a, b in pairs)


def serve(
    connection: Connection, model: str, options: dict[str, Any], rounds: Iterable[int]
) -> None:
    """An engine's process: serves the fixed set, then the other rounds, and tells of each."""
    modules = MODULES_ALONE | options
    llm = LLM(model, prompt_modules=modules, **(ENGINE_ARGS | SMALL_ENGINE))
    for number in chain((FIXED_ROUND,), rounds):
        connection.send(serve_round(llm, number))


@dataclass(slots=True)
class Engine:
    """An engine in a process of its own, and what it has told."""

    connection: Connection
    process: ForkProcess
    served: list[Served] = field(default_factory=list)

    @classmethod
    def start(cls, model: Path, options: dict[str, Any], rounds: Iterable[int]) -> Engine:
        """Forks a process that starts an engine."""
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=serve, args=(theirs, str(model), options, rounds))
        process.start()
        theirs.close()
        return cls(ours, process)

    def wait(self, seconds: float) -> bool:
        """Waits for the next round; returns whether it came."""
        with suppress(EOFError):  # it has died
            if self.connection.poll(seconds):
                self.served.append(self.connection.recv())
                return True
        return False

    def kill(self) -> None:
        """Kills it, then takes what it had told before."""
        self.process.kill()
        self.process.join()
        # The last round may have been cut off while it was told.
        with suppress(OSError):
            while self.wait(0):
                pass
        self.connection.close()


@dataclass(slots=True)
class Crash:
    """Engines that are killed one after the other on one folder.

    Attributes:
        model: Folder of the model.
        folder: Where the engines keep modules.
        rng: Says when they are killed.
        served: What each one told.
        num_dead: Engines that ended by themselves or never answered.
    """

    model: Path
    folder: Path
    rng: Random
    served: list[list[Served]] = field(default_factory=list)
    num_dead: int = 0

    def run(self, num_kills: int) -> None:
        """Starts and kills engines; one more is started in the end."""
        for number in range(num_kills + 1):
            options = {"dir": str(self.folder), "dir_size": DIR_SIZE, "host_memory": HOST_MEMORY}
            engine = Engine.start(self.model, options, count(self._last_round()))
            if engine.wait(MAX_START_S):
                self._serve_on(engine, is_aimed=number % 2 == 1)
            self.num_dead += not engine.served or not engine.process.is_alive()
            engine.kill()
            self.served.append(engine.served)
            self._tell(number)

    def expected(self) -> dict[int, list[Answer]]:
        """Answers of all rounds that were served, from an engine that keeps nothing on disk."""
        last = self._last_round()
        engine = Engine.start(self.model, {}, range(1, last + 1))
        for _ in range(last + 1):
            if not engine.wait(MAX_START_S):
                raise RuntimeError("the engine without a folder has died")
        engine.process.join()
        return {served.number: served.answers for served in engine.served}

    def report(self, expected: dict[int, list[Answer]]) -> tuple[str, bool]:
        """One line of counts, and whether all is well."""
        engines = [engine for engine in self.served if engine]
        answers = [pair for engine in engines for pair in _pairs(engine, expected)]
        num_wrong = sum(not is_same(ours, theirs) for ours, theirs in answers)
        restarts = [engine for engine in self.served[1:] if engine]
        num_damaged = sum(map(is_damaged, self.folder.glob(f"*/*{SUFFIX}")))
        numbers = {
            "kills": len(self.served) - 1,
            "restarts that worked": len(restarts),
            "engines that ended or hung": self.num_dead,
            "answers": len(answers),
            "different ones": len({theirs for _, theirs in answers}),
            "wrong answers": num_wrong,
            "read from disk": sum(engine[-1].num_fetches for engine in engines),
            "read for the fixed prompts": sum(engine[0].num_fetches for engine in restarts),
            "encoded for them": sum(engine[0].num_encodes for engine in restarts),
            "encoded": sum(engine[-1].num_encodes for engine in engines),
            "files": len(list(self.folder.glob(f"*/*{SUFFIX}"))),
            "damaged files": num_damaged,
            "leftover *.partial files": len(list(self.folder.glob(f"*/*{TEMPORARY_SUFFIX}"))),
        }
        is_good = not num_wrong and not num_damaged and not self.num_dead
        line = ", ".join(f"{value} {name}" for name, value in numbers.items())
        return line, is_good and len(restarts) == numbers["kills"]

    def _last_round(self) -> int:
        """The last round that an engine has finished, or the first one."""
        return max((served.number for engine in self.served for served in engine), default=0) or 1

    def _serve_on(self, engine: Engine, *, is_aimed: bool) -> None:
        """Lets it serve for a random time; then, if aimed, until it is writing a file."""
        end = time.monotonic() + self.rng.uniform(0, MAX_SERVE_S)
        while (left := end - time.monotonic()) > 0 and engine.process.is_alive():
            engine.wait(left)
        end = time.monotonic() + MAX_AIM_S
        before = set(self._partial_files())
        while is_aimed and time.monotonic() < end and before.issuperset(self._partial_files()):
            pass

    def _partial_files(self) -> list[str]:
        folders = [entry.path for entry in os.scandir(self.folder)]
        names = [name for folder in folders for name in os.listdir(folder)]
        return [name for name in names if name.endswith(TEMPORARY_SUFFIX)]

    def _tell(self, number: int) -> None:
        served = self.served[-1]
        if not served:
            return print(f"engine {number} has answered nothing")
        first, last = served[0], served[-1]
        print(
            f"engine {number}: fixed prompts with {first.num_fetches} read and "
            f"{first.num_encodes} encoded; until killed, rounds to {last.number}, "
            f"{last.num_fetches} read and {last.num_encodes} encoded",
            flush=True,
        )


def _pairs(
    engine: Sequence[Served], expected: dict[int, list[Answer]]
) -> list[tuple[Answer, Answer]]:
    """Each answer of an engine beside the expected one."""
    return [
        pair
        for served in engine
        for pair in zip(served.answers, expected[served.number], strict=True)
    ]


def is_damaged(path: Path) -> bool:
    """Whether a file is not what it says it is."""
    try:
        with safe_open(path, "pt") as file:
            fingerprint = (file.metadata() or {}).get("fingerprint", "")
        ModuleFile.read(path, bytes.fromhex(path.stem), fingerprint)
    except (InvalidFileError, OSError, ValueError) as error:
        print(f"{path.name}: {error!r}")
        return True
    return False


def main() -> None:
    """Kills engines as often as the command line says; exits with 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model, modules = LLAMA.save(Path(folder) / "model"), Path(folder) / "modules"
        crash = Crash(model, modules, Random(args.seed))
        crash.run(args.kills)
        line, is_good = crash.report(crash.expected())
    print(line)
    sys.exit(not is_good)


if __name__ == "__main__":
    main()
