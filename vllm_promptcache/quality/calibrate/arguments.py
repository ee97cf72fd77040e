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
of a plain prefill, and the mean KL of its first tokens is at most --max-kl nats. Of those that
pass, the one that computes the smallest share of module tokens again is chosen, the earlier one
where two are alike; `exact` where none passes. The means of few rows say little: give many, of
your own.

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
