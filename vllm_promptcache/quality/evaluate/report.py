"""Results as JSON, Markdown and on the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from vllm_promptcache.quality.evaluate.answers import Refusal
from vllm_promptcache.quality.evaluate.bootstrap import Estimate
from vllm_promptcache.quality.evaluate.summary import Result
from vllm_promptcache.quality.first_token import NUM_TOKENS

# Of a table in a file or pipe.
_WIDTH = 160


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table.

    Attributes:
        header: Its name.
        meaning: What it says.
        format: Of a number.
    """

    header: str
    meaning: str
    format: str = ".1f"


COLUMNS: Mapping[str, Column] = {
    "score": Column("score", "the metric, 0 to 100; F1 for subspan_em/f1"),
    "exact": Column("EM", "exact match; for subspan_em/f1, the answer's words are in the text"),
    "difference": Column("to plain", "difference of the score to that of plain", "+.1f"),
    "agreement": Column(
        "same text", "greedy answers that are those of plain, word for word", ".1%"
    ),
    "divergence": Column(
        "KL",
        "KL(plain || policy) of the first token in nats, over the plain prefill's "
        f"{NUM_TOKENS} likeliest tokens and all others as one: a lower bound",
        ".3f",
    ),
    "recomputed_share": Column(
        "recomputed",
        "module tokens computed again, of all module tokens; under exact, all count unless the row "
        "before had the same documents, since no other combination can use their states; scaffold "
        "takes it that the combination was known beforehand",
        ".1%",
    ),
    "encoded_share": Column(
        "encoded",
        "module tokens encoded for the row: 0 where a row or policy before has done so",
        ".1%",
    ),
    "first_token_s": Column(
        "first token, s", "median time to the first token, all modules resident", ".3f"
    ),
}
METHOD = (
    "plain is one prefill of the same tokens. Figures are of rows that all policies have answered. "
    "Behind them are 95 % intervals, unless all rows are alike: bootstrap over rows, with the same "
    "resamples for all policies."
)


def write_results(
    folder: Path,
    settings: Mapping[str, Any],
    results: Sequence[Result],
    skipped: Sequence[Refusal],
) -> None:
    """Writes `results.json` and `results.md`."""
    content = {
        "settings": dict(settings),
        "results": [asdict(result) for result in results],
        "skipped": [asdict(refusal) for refusal in skipped],
    }
    (folder / "results.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    text = "\n".join(markdown(settings, results, skipped)) + "\n"
    (folder / "results.md").write_text(text, encoding="utf-8")


def markdown(
    settings: Mapping[str, Any], results: Sequence[Result], skipped: Sequence[Refusal]
) -> Iterator[str]:
    """The lines of the Markdown report."""
    yield f"# Reuse policies on {Path(settings['model']).name}"
    for title, keys, rows in _tables(results):
        yield from ("", f"## {title}", "")
        headers = ["policy", *(COLUMNS[key].header for key in keys)]
        yield from (_line(headers), _line(["---"] * len(headers)), *map(_line, rows))
    yield from ("", METHOD, "")
    yield from (f"- {column.header}: {column.meaning}" for column in COLUMNS.values())
    given = (f"{name} {value}" for name, value in settings.items() if value is not None)
    yield from ("", f"Settings: {', '.join(given)}.")
    if skipped:
        yield from ("", f"Skipped rows ({len(skipped)}):", "")
        yield from (f"- {each}" for each in map(_skipped, skipped))


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _skipped(refusal: Refusal) -> str:
    return f"{refusal.data}, row {refusal.row}, {refusal.policy}: {refusal.reason}"


def output_console() -> Console:
    """Where tables are printed."""
    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH)


def print_results(console: Console, results: Sequence[Result], skipped: Sequence[Refusal]) -> None:
    """Prints the tables, and what was skipped."""
    for title, keys, rows in _tables(results):
        table = Table("policy", title=title, title_justify="left", box=SIMPLE_HEAD)
        for key in keys:
            table.add_column(COLUMNS[key].header, justify="right")
        for cells in rows:
            # An interval below its figure, so that the table is not too wide.
            table.add_row(*(cell.replace(" (", "\n(") for cell in cells))
        console.print(table)
    for refusal in skipped:
        console.print(f"skipped: {_skipped(refusal)}", markup=False)


def _tables(results: Sequence[Result]) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Title, keys of the columns and rows of each data set's table."""
    for data, group in groupby(results, key=lambda result: result.data):
        members = list(group)
        keys = [key for key in COLUMNS if key in members[0].figures]
        rows = [
            [m.policy, *(_cell(m.figures[k], COLUMNS[k].format) for k in keys)] for m in members
        ]
        yield f"{data}: {members[0].metric}, {members[0].num_rows} rows", keys, rows


def _cell(figure: Estimate, form: str) -> str:
    value = format(figure.value, form)
    if figure.low is None or figure.high is None or figure.low == figure.high:
        return value
    return f"{value} ({format(figure.low, form)}, {format(figure.high, form)})"
