"""Prints what the demo measured."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from vllm_promptcache.entrypoints.schema_info import SchemaInfo
from vllm_promptcache.examples.measure import NUM_RUNS, Measurement

# What each column of the summary means; times are seconds.
COLUMNS = {
    "cached": "prompt tokens whose KV comes from modules",
    "computed": "the other prompt tokens: arguments, new text, and module tokens that are repaired",
    "first use": "time to first token of the prompt's first run, which encodes the modules that no "
    "prompt has used before",
    "reuse": "time to first token with all modules in the KV cache",
    "no reuse": "time to first token with reuse=False: the same tokens at the same positions, all "
    "computed; vLLM's prefix cache, which knows how other prompts began, plays no part",
    "ratio": "no reuse / reuse",
}
METHOD = f"""\
Times are seconds from calling generate() until it returns one token, one request at a time, with \
parsing and planning of the prompt. "reuse" and "no reuse" are medians of {NUM_RUNS} runs by turns.
Reuse changes what modules attend to, so the two answers of a prompt may differ. The model is very \
small: its answers are simple and often wrong, with or without reuse."""


def print_schema(console: Console, info: SchemaInfo) -> None:
    """Prints a schema's modules with their tokens."""
    console.print()
    console.rule(f"[bold]Schema {info.name}")
    listing = ", ".join(f"{m.path or '(text around)'} {m.num_tokens}" for m in info.modules)
    num_tokens = sum(module.num_tokens for module in info.modules)
    console.print(f"{len(info.modules)} modules with {num_tokens} tokens: {listing}")


def print_measurement(console: Console, measured: Measurement) -> None:
    """Prints one prompt: what it imports, what it cost, what the model says."""
    console.print(f"\n[bold]{measured.title}[/]")
    console.print(Padding(Text(measured.pml.strip(), style="cyan"), (0, 2), expand=False))
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column()
    for label, text in _rows(measured):
        table.add_row(label, escape(text))
    console.print(Padding(table, (0, 2), expand=False))


def _rows(measured: Measurement) -> list[tuple[str, str]]:
    explained = measured.explanation
    imports = ", ".join(module.path for module in explained.modules if module.path)
    arguments = ", ".join(f"{name} = {value!r}" for name, value in measured.arguments.items())
    return [
        ("imports", imports),
        ("arguments", arguments or "none"),
        ("tokens", f"{measured.num_cached_tokens} cached, {measured.num_computed_tokens} computed"),
        ("first token", f"{_seconds(measured.reuse_s)} with reuse"),
        ("", f"{_seconds(measured.plain_s)} without, {measured.ratio:.1f} times as long"),
        ("first use", f"{measured.first_use_s:.3f} s"),
        ("answer", f"{measured.answer.strip()} ..."),
        ("without reuse", f"{measured.plain_answer.strip()} ..."),
    ]


def _seconds(runs: Sequence[float]) -> str:
    return f"{median(runs):.3f} s ({min(runs):.3f} to {max(runs):.3f})"


def print_summary(console: Console, measurements: Sequence[Measurement]) -> None:
    """Prints all prompts in one table, and what its columns mean."""
    console.print()
    console.rule("[bold]Summary")
    table = Table()
    table.add_column("prompt", no_wrap=True)
    for header in COLUMNS:
        table.add_column(header, justify="right")
    for measured in measurements:
        table.add_row(*_cells(measured))
    console.print(table)
    for header, meaning in COLUMNS.items():
        console.print(f"[bold]{header}[/]: {meaning}")
    console.print(METHOD)


def _cells(measured: Measurement) -> tuple[str, ...]:
    times = (measured.first_use_s, median(measured.reuse_s), median(measured.plain_s))
    return (
        measured.title,
        str(measured.num_cached_tokens),
        str(measured.num_computed_tokens),
        *(f"{seconds:.3f}" for seconds in times),
        f"{measured.ratio:.1f}",
    )
