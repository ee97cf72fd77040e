"""The command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from vllm_promptcache.errors import PromptCacheError
from vllm_promptcache.quality.evaluate.engine import EngineOptions

_EPILOG = """\
policies:
  plain             one prefill of everything; always run, since others are compared with it
  isolated          modules are encoded alone
  anchored          modules are encoded behind the schema's text before them
  primed            behind that, and a made-up text in place of other modules
  exact             modules are encoded behind all that is imported before them
  scaffold          all documents of a row are encoded together
  default           nothing is said: what the engine does by itself
  POLICY+REPAIR     with repair, such as isolated+head:16

A line of FILE is a JSON object: "id", "metric" (f1, subspan_em/f1, accuracy or rougeL), "docs" (a
list of texts), "question", "answers" (a list of texts), and where it is known "gold_index" (number
of the document with the answer, from 0).
"""


def make_parser() -> argparse.ArgumentParser:
    """Makes the parser."""
    parser = argparse.ArgumentParser(
        prog="python -m vllm_promptcache.quality.evaluate",
        description="Compare answers with reused modules to those of a plain prefill. Run again "
        "with the same --output to go on after a stop, or to add files, rows and policies.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add_engine_arguments(parser)
    add("--data", required=True, action="append", type=Path, metavar="FILE", help="may be repeated")
    add("--policies", default="plain,isolated,anchored", help="see below; default: %(default)s")
    add("--documents", type=positive, metavar="N", help="cut rows to N documents, gold one kept")
    add("--output", required=True, type=Path, metavar="DIR", help="for answers and results")
    return parser


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what all commands have that run policies."""
    add = parser.add_argument
    add("--model", required=True, help="a folder or name, or an embedded model's name")
    add("--limit", type=positive, metavar="N", help="rows of each file, at even distances")
    add("--max-tokens", type=positive, metavar="N", help="of an answer; default: 32, rougeL 256")
    add("--dtype", default="auto", help="as for vLLM; default: %(default)s")
    add("--max-model-len", type=positive, metavar="N", help="default: what the model has")
    add("--kv-cache-memory", type=float, default=2.0, metavar="GIB", help="default: %(default)s")


def engine_options(arguments: argparse.Namespace) -> EngineOptions:
    """How the engine is to be started."""
    return EngineOptions(
        arguments.model,
        arguments.dtype,
        arguments.max_model_len,
        int(arguments.kv_cache_memory * 2**30),
    )


def exit_code(command: Callable[[], None]) -> int:
    """Runs a command; returns 0, or 2 after a line on stderr that says what cannot be used."""
    try:
        command()
    except PromptCacheError as error:
        message = error.message if error.hint is None else f"{error.message}; {error.hint}"
        print(f"error: {message}", file=sys.stderr)
        return 2
    return 0


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number
