"""`python -m vllm_promptcache.evaluate`: compares policies of reuse with a plain prefill."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from vllm_promptcache.errors import ClientError, PromptCacheError
from vllm_promptcache.evaluate.answers import AnswerLog
from vllm_promptcache.evaluate.arguments import make_parser
from vllm_promptcache.evaluate.data import DataSet, read_data
from vllm_promptcache.evaluate.engine import (
    EngineOptions,
    check_policy,
    find_writer,
    running_engine,
)
from vllm_promptcache.evaluate.metrics import check_metrics
from vllm_promptcache.evaluate.policies import Policy, read_policies
from vllm_promptcache.evaluate.report import print_results, write_results
from vllm_promptcache.evaluate.summary import refusals, summarize

# Of the table in a file or pipe.
_WIDTH = 160


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Returns:
        The exit code: 0, or 2 with a message on stderr where something cannot be used.
    """
    arguments = make_parser().parse_args(argv)
    try:
        evaluate(arguments, Console(stderr=True))
    except PromptCacheError as error:
        message = error.message if error.hint is None else f"{error.message}; {error.hint}"
        print(f"error: {message}", file=sys.stderr)
        return 2
    return 0


def evaluate(arguments: argparse.Namespace, progress_console: Console) -> None:
    """Runs what the log does not have yet, then reports.

    Raises:
        PromptCacheError: Something given cannot be used.
    """
    check_metrics()
    policies = read_policies(arguments.policies)
    sets = _read_sets(arguments.data, arguments.limit, arguments.documents)
    settings = _settings(arguments)
    digests = {f"sha256 of {data.name}": data.sha256 for data in sets}
    log = AnswerLog.open(arguments.output, settings | digests)
    names = [policy.name for policy in policies]
    if any(_is_open(log, data, names) for data in sets):
        _run(arguments, sets, policies, log, progress_console)
    results = [result for data in sets for result in summarize(data, names, log)]
    skipped = [refusal for data in sets for refusal in refusals(data, names, log)]
    write_results(arguments.output, settings, results, skipped)
    console = Console()
    print_results(console if console.is_terminal else Console(width=_WIDTH), results, skipped)


def _read_sets(
    paths: Sequence[Path], limit: int | None, num_documents: int | None
) -> list[DataSet]:
    sets = [read_data(path, limit, num_documents) for path in paths]
    names = [data.name for data in sets]
    if len(set(names)) < len(names):
        raise ClientError("two files of --data have the same name")
    return sets


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What answers depend on, beside row and policy."""
    names = ("model", "dtype", "max_tokens", "max_model_len", "documents")
    return {name: getattr(arguments, name) for name in names}


def _is_open(log: AnswerLog, data: DataSet, policies: Sequence[str]) -> bool:
    """Whether there is anything left to run."""
    return any(
        log.get(data.name, row.id, policy) is None
        for row in data.rows
        for policy in policies
        if log.refusal(data.name, row.id, policies) is None
    )


def _run(
    arguments: argparse.Namespace,
    sets: Sequence[DataSet],
    policies: Sequence[Policy],
    log: AnswerLog,
    console: Console,
) -> None:
    options = EngineOptions(
        arguments.model,
        arguments.dtype,
        arguments.max_model_len,
        int(arguments.kv_cache_memory * 2**30),
    )
    with ExitStack() as stack:
        with console.status("Starting vLLM"):
            llm = stack.enter_context(running_engine(options))
        # It imports vLLM, which reads the environment that the engine has set.
        from vllm_promptcache.evaluate.runner import Runner

        writer = find_writer(llm)
        for policy in policies:
            check_policy(llm, writer, policy)
        runner = Runner(llm, writer, log, arguments.max_tokens)
        columns = (*Progress.get_default_columns(), MofNCompleteColumn())
        with Progress(*columns, console=console) as progress:
            tasks = [progress.add_task(d.name, total=len(d.rows) * len(policies)) for d in sets]
            for data, task in zip(sets, tasks, strict=True):
                runner.run(data, policies, partial(progress.advance, task))


if __name__ == "__main__":
    sys.exit(main())
