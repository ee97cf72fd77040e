"""`python -m vllm_promptcache.models [NAME]`: print the folder of an embedded model."""

import argparse
import sys
from collections.abc import Sequence

from rich.filesize import decimal

from vllm_promptcache.errors import ModelError
from vllm_promptcache.models.build import embedded_model
from vllm_promptcache.models.registry import DEFAULT_MODEL, MODELS


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit code: 0, or 1 where the model cannot be built; the reason goes to stderr.
    """
    arguments = _parser().parse_args(argv)
    if arguments.list:
        _print_list()
        return 0
    try:
        print(embedded_model(arguments.name))
    except ModelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vllm_promptcache.models",
        description="Print the folder of an embedded model, building it on first use.",
    )
    parser.add_argument("name", nargs="?", default=DEFAULT_MODEL, help="default: %(default)s")
    parser.add_argument("--list", action="store_true", help="list the models with their sizes")
    return parser


def _print_list() -> None:
    for spec in MODELS.values():
        sizes = f"download {decimal(spec.download_bytes):>8}, disk {decimal(spec.model_bytes):>8}"
        print(f"{spec.name:20} {sizes}  {spec.description} ({spec.license})")


if __name__ == "__main__":
    sys.exit(main())
