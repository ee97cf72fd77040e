"""Quality of reuse policies over what they compute again, as a picture.

    python -m benchmarks.pareto RESULTS.json... --plot benchmarks/pareto.png

Reads what `python -m vllm_promptcache.quality.evaluate` has written. Each model and data set gets a
row of two panels, each policy a point with its 95 % interval.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

SHARE = "recomputed_share"
# Figure and label of each panel.
PANELS = {"score": "score", "agreement": "answers as by plain prefill, %"}
PERCENT = (SHARE, "agreement")


@dataclass(frozen=True, slots=True)
class Row:
    """A row of panels.

    Attributes:
        title: Model, data set and number of rows.
        results: One a policy, as in `results.json`.
    """

    title: str
    results: list[dict[str, Any]]


def read_rows(path: Path) -> Iterator[Row]:
    """The data sets of a file of results."""
    content = json.loads(path.read_text(encoding="utf-8"))
    model = Path(content["settings"]["model"]).name
    for data, group in groupby(content["results"], key=lambda result: result["data"]):
        results = list(group)
        number, metric = results[0]["num_rows"], results[0]["metric"]
        yield Row(f"{model}, {data}: {metric}, {number} rows", results)


def bar(result: dict[str, Any], name: str) -> tuple[float, list[list[float]]]:
    """A figure, and how far its interval reaches below and above, `[2, 1]`."""
    figure, factor = result["figures"][name], 100 if name in PERCENT else 1
    value = figure["value"]
    # Without an interval, its ends are null.
    ends = [value if figure[end] is None else figure[end] for end in ("low", "high")]
    return factor * value, [[factor * (value - ends[0])], [factor * (ends[1] - value)]]


def draw(axes: Any, row: Row, name: str, numbers: Mapping[str, int]) -> None:
    """Draws a panel; `numbers` has one for each policy."""
    for result in row.results:
        number = numbers[result["policy"]]
        (x, x_error), (y, y_error) = bar(result, SHARE), bar(result, name)
        # Points of the same share of tokens, such as 0, would hide each other without colours.
        axes.errorbar(
            x,
            y,
            xerr=x_error,
            yerr=y_error,
            fmt="osD^v<>P"[number % 8],
            markersize=5,
            capsize=2,
            color=f"C{number % 10}",
            label=result["policy"],
        )
    axes.set(xlabel="module tokens computed again, %", ylabel=PANELS[name])
    axes.grid(alpha=0.3)


def plot(rows: list[Row], path: Path) -> None:
    """Draws all rows into a file."""
    from matplotlib import pyplot

    # A policy looks the same in all rows.
    policies = dict.fromkeys(result["policy"] for row in rows for result in row.results)
    numbers = {policy: number for number, policy in enumerate(policies)}
    size = (11, 3.6 * len(rows))
    figure, panels = pyplot.subplots(len(rows), len(PANELS), figsize=size, squeeze=False)
    for row, pair in zip(rows, panels, strict=True):
        for name, axes in zip(PANELS, pair, strict=True):
            draw(axes, row, name, numbers)
        pair[0].set_title(row.title, loc="left", fontsize="medium")
        pair[-1].legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+", help="results.json of evaluations")
    parser.add_argument("--plot", type=Path, required=True, help="the picture to write")
    args = parser.parse_args()
    plot([row for path in args.results for row in read_rows(path)], args.plot)


if __name__ == "__main__":
    main()
