"""Measures the candidates with what `quality.evaluate` has for it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rich.console import Console

from vllm_promptcache.errors import ClientError
from vllm_promptcache.quality.evaluate.answers import AnswerLog, Refusal
from vllm_promptcache.quality.evaluate.arguments import engine_options
from vllm_promptcache.quality.evaluate.contenders import Contender
from vllm_promptcache.quality.evaluate.data import DataSet
from vllm_promptcache.quality.evaluate.run import run
from vllm_promptcache.quality.evaluate.summary import Result, refusals, summarize


def measure(
    arguments: argparse.Namespace,
    data: DataSet,
    contenders: Sequence[Contender],
    digest: str,
    console: Console,
) -> list[Result]:
    """Figures of all contenders; runs what has not been run before.

    Args:
        arguments: The command line.
        data: The rows.
        contenders: The plain one, then the candidates.
        digest: SHA-256 of the model's `config.json`.
        console: Shows progress, and what was left out.

    Raises:
        PromptCacheError: The engine does not start, or can run no row.
    """
    settings = {
        "model": arguments.model,
        "sha256 of config.json": digest,
        "dtype": arguments.dtype,
        "max_tokens": arguments.max_tokens,
        "max_model_len": arguments.max_model_len,
        f"sha256 of {data.name}": data.sha256,
    }
    log = AnswerLog.open(arguments.output.with_name(f"{arguments.output.name}.answers"), settings)
    names = [contender.name for contender in contenders]
    run(engine_options(arguments), [data], contenders, log, arguments.max_tokens, console)
    _report(refusals(data, names, log), len(data.rows), console)
    return summarize(data, names, log)


def _report(skipped: Sequence[Refusal], num_rows: int, console: Console) -> None:
    if not skipped:
        return
    first = skipped[0]
    text = f"{len(skipped)} of {num_rows} rows left out; row {first.row}: {first.reason}"
    if len(skipped) == num_rows:
        raise ClientError(f"nothing could be measured: {text}")
    console.print(text, markup=False, highlight=False)
