"""Runs policies on data sets: starts the engine where there is anything to ask."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from vllm_promptcache.quality.evaluate.answers import AnswerLog
from vllm_promptcache.quality.evaluate.contenders import Contender
from vllm_promptcache.quality.evaluate.data import DataSet
from vllm_promptcache.quality.evaluate.engine import (
    EngineOptions,
    check_contender,
    find_writer,
    running_engine,
)


def run(
    options: EngineOptions,
    sets: Sequence[DataSet],
    contenders: Sequence[Contender],
    log: AnswerLog,
    max_tokens: int | None,
    console: Console,
) -> None:
    """Runs what the log does not have yet.

    Args:
        options: How the engine is started.
        sets: The rows.
        contenders: What answers them; begins with the plain one.
        log: Gets the answers.
        max_tokens: Tokens of an answer; None for what the metric's task has.
        console: Shows progress.

    Raises:
        PromptCacheError: The engine does not start, or does not know a policy.
    """
    names = [contender.name for contender in contenders]
    if not any(_is_open(log, data, names) for data in sets):
        return
    with ExitStack() as stack:
        with console.status("Starting vLLM"):
            llm = stack.enter_context(running_engine(options))
        # It imports vLLM, which reads the environment that the engine has set.
        from vllm_promptcache.quality.evaluate.runner import Runner

        writer = find_writer(llm)
        for contender in contenders:
            check_contender(llm, writer, contender)
        runner = Runner(llm, writer, log, max_tokens)
        columns = (*Progress.get_default_columns(), MofNCompleteColumn())
        with Progress(*columns, console=console) as progress:
            num = len(contenders)
            tasks = [progress.add_task(d.name, total=len(d.rows) * num) for d in sets]
            for data, task in zip(sets, tasks, strict=True):
                runner.run(data, contenders, partial(progress.advance, task))


def _is_open(log: AnswerLog, data: DataSet, policies: Sequence[str]) -> bool:
    """Whether there is anything left to run."""
    return any(
        log.get(data.name, row.id, policy) is None
        for row in data.rows
        for policy in policies
        if log.refusal(data.name, row.id, policies) is None
    )
