"""The command `quality.calibrate`: measures policies and writes a profile."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from vllm_promptcache.errors import ClientError
from vllm_promptcache.models import MODELS, embedded_model
from vllm_promptcache.quality.calibrate.arguments import make_parser
from vllm_promptcache.quality.calibrate.choice import (
    Limits,
    Verdict,
    choose_policy,
    judge,
    read_candidates,
)
from vllm_promptcache.quality.calibrate.measure import measure
from vllm_promptcache.quality.calibrate.questions import builtin_questions
from vllm_promptcache.quality.calibrate.report import print_choice, print_verdicts
from vllm_promptcache.quality.evaluate.arguments import exit_code
from vllm_promptcache.quality.evaluate.data import DataSet, read_data
from vllm_promptcache.quality.evaluate.metrics import check_metrics
from vllm_promptcache.quality.evaluate.report import output_console
from vllm_promptcache.quality.load_profile import config_sha256
from vllm_promptcache.quality.profile import Profile, ProfiledModel


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code, see `exit_code`."""
    arguments = make_parser().parse_args(argv)
    return exit_code(lambda: calibrate(arguments, Console(stderr=True)))


def calibrate(arguments: argparse.Namespace, progress_console: Console) -> None:
    """Measures the candidates, judges them, and writes the profile.

    Raises:
        PromptCacheError: Something given cannot be used.
    """
    check_metrics()
    contenders = read_candidates(arguments.policies)
    if arguments.output.is_dir():
        raise ClientError(f"{arguments.output} is a folder, not a file to write")
    data = _read_data(arguments.data, arguments.limit)
    name = arguments.model
    digest = config_sha256(str(embedded_model(name)) if name in MODELS else name)
    plain, *others = measure(arguments, data, contenders, digest, progress_console)
    limits = Limits(arguments.tolerance, arguments.max_kl)
    verdicts = judge(others, limits)
    model = ProfiledModel(name=name, config_sha256=digest)
    profile = _profile(model, limits, plain.num_rows, verdicts)
    _write(arguments.output, profile)
    console = output_console()
    print_verdicts(console, verdicts, plain.figures["score"])
    print_choice(console, profile, arguments.output)


def _read_data(path: Path | None, limit: int | None) -> DataSet:
    return builtin_questions(limit) if path is None else read_data(path, limit)


def _profile(
    model: ProfiledModel, limits: Limits, num_rows: int, verdicts: Sequence[Verdict]
) -> Profile:
    return Profile(
        model=model,
        tolerance=limits.tolerance,
        max_kl=limits.max_kl,
        num_rows=num_rows,
        measured=tuple(verdict.figures for verdict in verdicts),
        default=choose_policy(verdicts),
    )


def _write(path: Path, profile: Profile) -> None:
    try:
        path.write_text(profile.model_dump_json(indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ClientError(f"cannot write {path}: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(main())
