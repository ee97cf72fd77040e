"""The command line."""

from __future__ import annotations

import argparse
from pathlib import Path

from vllm_promptcache.quality.evaluate.arguments import add_engine_arguments

CANDIDATES = (
    "isolated,anchored,primed,primed+head:16,anchored+query:15,primed+query:15,primed+query:30"
)
_EPILOG = """\
A policy passes if the mean score of its answers is at most --tolerance points (of 100) below that
of a plain prefill, and the mean KL of its first tokens is at most --max-kl nats, both with their
whole 95 % intervals, and on no fewer than 300 / --tolerance rows: what none of them shows may still
be so in 3 of them. It fails if one of these intervals is above its limit. Otherwise it is
undecided, which servers take for a failure; it is said about how many more rows would decide. The
24 questions of this package tell large losses only: give many, of your own.
Of those that pass, the one that computes the smallest share of module tokens again is chosen, the
earlier one where two are alike; `exact` where none passes.

Answers are kept in the folder PROFILE.answers. Run again to go on after a stop, or with other
limits.
The format of FILE is that of `python -m vllm_promptcache.quality.evaluate --help`.
"""


def make_parser() -> argparse.ArgumentParser:
    """Makes the parser."""
    parser = argparse.ArgumentParser(
        prog="python -m vllm_promptcache.quality.calibrate",
        description="Find the cheapest policy that answers about as well as a plain prefill, and "
        "write a profile for `vllm serve --prompt-modules-profile`.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add_engine_arguments(parser)
    add("--data", type=Path, metavar="FILE", help="default: 24 questions of this package")
    add("--policies", default=CANDIDATES, help="candidates; default: %(default)s")
    add("--tolerance", type=_limit, default=1.0, metavar="POINTS", help="default: %(default)s")
    add("--max-kl", type=_limit, default=0.05, metavar="NATS", help="default: %(default)s")
    add("--output", required=True, type=Path, metavar="PROFILE", help="the file to write")
    return parser


def _limit(text: str) -> float:
    number = float(text)
    if not 0 <= number < float("inf"):
        raise ValueError
    return number
