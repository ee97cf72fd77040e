"""The command `quality.evaluate`: compares policies of reuse with a plain prefill."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from vllm_promptcache.errors import ClientError
from vllm_promptcache.quality.evaluate.answers import AnswerLog
from vllm_promptcache.quality.evaluate.arguments import engine_options, exit_code, make_parser
from vllm_promptcache.quality.evaluate.contenders import read_contenders
from vllm_promptcache.quality.evaluate.data import DataSet, read_data
from vllm_promptcache.quality.evaluate.metrics import check_metrics
from vllm_promptcache.quality.evaluate.report import output_console, print_results, write_results
from vllm_promptcache.quality.evaluate.run import run
from vllm_promptcache.quality.evaluate.summary import refusals, summarize


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Returns:
        The exit code: 0, or 2 with a message on stderr where something cannot be used.
    """
    arguments = make_parser().parse_args(argv)
    return exit_code(lambda: evaluate(arguments, Console(stderr=True)))


def evaluate(arguments: argparse.Namespace, progress_console: Console) -> None:
    """Runs what the log does not have yet, then reports.

    Raises:
        PromptCacheError: Something given cannot be used.
    """
    check_metrics()
    contenders = read_contenders(arguments.policies)
    sets = _read_sets(arguments.data, arguments.limit, arguments.documents)
    settings = _settings(arguments)
    digests = {f"sha256 of {data.name}": data.sha256 for data in sets}
    log = AnswerLog.open(arguments.output, settings | digests)
    names = [contender.name for contender in contenders]
    run(engine_options(arguments), sets, contenders, log, arguments.max_tokens, progress_console)
    results = [result for data in sets for result in summarize(data, names, log)]
    skipped = [refusal for data in sets for refusal in refusals(data, names, log)]
    write_results(arguments.output, settings, results, skipped)
    print_results(output_console(), results, skipped)


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


if __name__ == "__main__":
    sys.exit(main())
