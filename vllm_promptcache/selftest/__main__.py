"""The command."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from vllm_promptcache.models import MODELS, embedded_model
from vllm_promptcache.quality.evaluate.engine import QUIET
from vllm_promptcache.selftest.engine import EngineOptions, EngineReport
from vllm_promptcache.selftest.kernels import check_kernels
from vllm_promptcache.selftest.report import Check, check_engines


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Returns:
        The exit code: 0 if all is right, 1 if something is wrong, 2 if no engine has started.
    """
    arguments = _parser().parse_args(argv)
    console = Console(highlight=False)
    name = arguments.model
    model = str(embedded_model(name)) if name in MODELS else name
    kernels = _kernels(console, arguments.dtype)
    reports = list(_engines(console, model, arguments))
    if not reports:
        return 2
    checks = list(check_engines(reports))
    _print_checks(console, reports[0], checks)
    is_right = kernels and all(check.has_passed for check in checks)
    console.print("All is right." if is_right else "[red]Something is wrong: please report this.")
    return 0 if is_right else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="promptcache-selftest",
        description="Check prompt modules on this machine: kernels against plain torch, prompts "
        "against plain prefills, on each model runner, with and without CUDA graphs.",
    )
    add = parser.add_argument
    add("--model", required=True, help="a folder or name, or an embedded model's name")
    dtypes = ("auto", "bfloat16", "float16", "float32")
    add("--dtype", default="auto", choices=dtypes, help="as for vLLM; default: %(default)s")
    add("--kv-cache-memory", type=float, default=1.0, metavar="GIB", help="default: %(default)s")
    return parser


def _kernels(console: Console, dtype_name: str) -> bool:
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if dtype_name == "auto" else getattr(torch, dtype_name)
    results = list(check_kernels(device, dtype))
    table = Table("KV cache layout", "kernel", f"on {device.type}, {dtype}")
    for layout, what, is_right in results:
        table.add_row(layout, what, "as in plain torch" if is_right else "[red]wrong")
    console.print(table)
    return all(is_right for *_, is_right in results)


def _engines(console: Console, model: str, arguments: argparse.Namespace) -> Iterator[EngineReport]:
    """Runs an engine in each way there is; one that does not start is left out, with its reason."""
    for runner, is_eager in _ways():
        what = f"model runner {runner}, {'eager' if is_eager else 'with CUDA graphs'}"
        size = int(arguments.kv_cache_memory * 2**30)
        options = EngineOptions(model, arguments.dtype, is_eager, size)
        with console.status(f"{what}: 32 prompts, each with modules and without"):
            report = _run(options, runner)
        if isinstance(report, str):
            console.print(f"{what}: not run: {report}")
        else:
            yield report


def _ways() -> list[tuple[str, bool]]:
    import torch
    from vllm.triton_utils import HAS_TRITON

    runners = ("V1", "V2") if HAS_TRITON else ("V1",)
    modes = (True, False) if torch.cuda.is_available() else (True,)
    return [(runner, is_eager) for runner in runners for is_eager in modes]


def _run(options: EngineOptions, runner: str) -> EngineReport | str:
    env = os.environ | QUIET | {"VLLM_USE_V2_MODEL_RUNNER": str(int(runner == "V2"))}
    command = [
        sys.executable,
        "-m",
        "vllm_promptcache.selftest.engine",
        json.dumps(asdict(options)),
    ]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        return (done.stderr.strip().splitlines() or ["no reason was given"])[-1]
    return EngineReport.from_json(lines[-1])


def _print_checks(console: Console, report: EngineReport, checks: Sequence[Check]) -> None:
    facts = report.facts
    names = ("vLLM", "device", "dtype", "block size")
    console.print(", ".join(f"{name}: {facts[name]}" for name in names))
    columns = (
        "engine",
        "prompts",
        "compared",
        "same answers",
        "mean, nats",
        "noise",
        "largest",
        "",
    )
    table = Table(*columns)
    for check in checks:
        found = check.distance
        numbers = (f"{number:.1e}" for number in (found.mean, check.noise.mean, found.largest))
        verdict = "right" if check.has_passed else "[red]wrong"
        same = f"{found.num_equal} of {found.num_answers}"
        table.add_row(check.engine, check.group, check.what, same, *numbers, verdict)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
