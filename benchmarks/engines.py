"""Engines to compare: each in a process of its own, asked in turn so that noise hits all alike."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from vllm_promptcache.models import dtype_reason, fast_dtype

T = TypeVar("T")

# A prompt: text (plain or PML), or token ids.
Prompt = str | list[int]


def in_process(run: Callable[..., T], *args: Any, **options: Any) -> T:
    """Calls `run` in a new process, which takes its engine with it when it ends."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(run, args, options)


def engine_defaults() -> dict[str, Any]:
    """Options of all engines here: the type that is fast on this machine. Says which to stderr."""
    dtype = fast_dtype()
    print(f"Engines compute in {dtype_reason(dtype)}.", file=sys.stderr)
    return {"dtype": dtype, "enforce_eager": True}


def inspected_engine(model: str, **options: Any) -> Any:
    """Starts an engine in this process, so that its counters can be looked at.

    Modules are neither repaired nor promoted unless `options` say so: the parts are measured.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm_promptcache import LLM

    modules = {"repair": "none", "promote_after": 0} | options.pop("prompt_modules", {})
    defaults = {**engine_defaults(), "disable_log_stats": True}
    return LLM(model, **(defaults | options | {"prompt_modules": modules}))


def scheduler_of(llm: Any) -> Any:
    """The scheduler of an `inspected_engine`."""
    return llm.llm_engine.engine_core.engine_core.scheduler


@dataclass(frozen=True, slots=True)
class Answer:
    """One timed request.

    Attributes:
        seconds: From the call of `generate` to its return.
        num_cached_tokens: Tokens of the prompt that were not computed.
        num_new_tokens: Tokens of the prompt that were computed.
    """

    seconds: float
    num_cached_tokens: int
    num_new_tokens: int


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine in another process."""

    connection: Connection

    def add_schema(self, pml: str) -> None:
        """Compiles a schema and encodes its modules."""
        self._call("add_schema", pml)

    def generate(self, prompt: Prompt, *, max_tokens: int = 1) -> Answer:
        """Runs one request; with one token its time is the time to the first token."""
        answer: Answer = self._call("generate", prompt, max_tokens)
        return answer

    def generate_together(self, prompts: list[Prompt], *, max_tokens: int) -> Answer:
        """Runs several requests at once; the time is that of all, the tokens are their sums."""
        answer: Answer = self._call("generate_together", prompts, max_tokens)
        return answer

    def plan_seconds(self, prompt: str) -> float:
        """Time to parse and plan a PML prompt."""
        seconds: float = self._call("plan_seconds", prompt)
        return seconds

    def encode(self, text: str) -> list[int]:
        """Tokens of a plain text."""
        token_ids: list[int] = self._call("encode", text)
        return token_ids

    def _call(self, name: str, *args: Any) -> Any:
        self.connection.send((name, args))
        result = self.connection.recv()
        if isinstance(result, Exception):
            raise result
        return result


@contextmanager
def start(model: str, *, modular: bool, options: Mapping[str, Any]) -> Iterator[Engine]:
    """Starts an engine, with prompt modules or as plain vLLM with the plugin installed."""
    context = multiprocessing.get_context("spawn")
    connection, child = context.Pipe()
    process = context.Process(target=_serve, args=(child, model, modular, dict(options)))
    process.start()
    child.close()
    try:
        if isinstance(error := connection.recv(), Exception):
            raise error
        yield Engine(connection)
    finally:
        connection.close()
        process.join()


def _serve(connection: Connection, model: str, modular: bool, options: dict[str, Any]) -> None:
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", HF_HUB_OFFLINE="1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    try:
        calls = _Calls(model, modular, options)
        connection.send(None)
    # Whatever it is: this process has no other way to say it than to the one that waits for it.
    except Exception as error:
        connection.send(RuntimeError(f"the engine did not start: {error}"))
        return
    while True:
        try:
            name, args = connection.recv()
        except EOFError:
            return
        try:
            connection.send(getattr(calls, name)(*args))
        # As above.
        except Exception as error:
            connection.send(RuntimeError(f"{type(error).__name__}: {error}"))


class _Calls:
    """What an engine's process answers; see `Engine`."""

    def __init__(self, model: str, modular: bool, options: dict[str, Any]) -> None:
        import vllm

        import vllm_promptcache

        kind = vllm_promptcache.LLM if modular else vllm.LLM
        self._llm: Any = kind(model, **(engine_defaults() | options))

    def add_schema(self, pml: str) -> None:
        self._llm.add_schema(pml, warm=True)

    def generate(self, prompt: Prompt, max_tokens: int) -> Answer:
        return self.generate_together([prompt], max_tokens)

    def generate_together(self, prompts: list[Prompt], max_tokens: int) -> Answer:
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
        requests = [{"prompt_token_ids": p} if isinstance(p, list) else p for p in prompts]
        start = time.perf_counter()
        outputs = self._llm.generate(requests, params, use_tqdm=False)
        seconds = time.perf_counter() - start
        num_cached = sum(output.num_cached_tokens for output in outputs)
        num_tokens = sum(len(output.prompt_token_ids) for output in outputs)
        return Answer(seconds, num_cached, num_tokens - num_cached)

    def plan_seconds(self, prompt: str) -> float:
        start = time.perf_counter()
        self._llm.front_end.plan(prompt)
        return time.perf_counter() - start

    def encode(self, text: str) -> list[int]:
        return list(self._llm.get_tokenizer().encode(text, add_special_tokens=False))


@dataclass(frozen=True, slots=True)
class Spread:
    """Several runs of one thing, in seconds."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median, in seconds."""
        return statistics.median(self.seconds)

    def over(self, other: Spread) -> float:
        """Median of the ratios of runs that were made side by side."""
        pairs = zip(self.seconds, other.seconds, strict=True)
        return statistics.median(mine / theirs for mine, theirs in pairs)

    def __str__(self) -> str:
        low, high = min(self.seconds) * 1e3, max(self.seconds) * 1e3
        return f"{self.median * 1e3:,.1f} ms ({low:,.1f} to {high:,.1f})"
