"""Options of an application of many replicas, from a command line or from `serve run`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from vllm_promptcache.errors import ClientError

MARGIN = 4.0


def _count(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def _amount(text: str) -> float:
    if not (number := float(text)) >= 0:
        raise argparse.ArgumentTypeError("must be 0 or more")
    return number


def _option(kind: Callable[[str], Any], default: Any, metavar: str, text: str) -> Any:
    """A field that is an option of the same name; `text` is its help."""
    shown = {"type": kind, "default": default, "metavar": metavar, "help": text}
    return field(default=default, metadata=shown)


@dataclass(frozen=True, slots=True)
class AppOptions:
    """What the app takes itself, and what it leaves to vLLM.

    Attributes:
        serve_options: What stands behind `vllm serve`, without `--prompt-schemas`.
    """

    serve_options: tuple[str, ...]
    replicas: int = _option(_count, 1, "N", "engines (default: 1)")
    max_replicas: int = _option(
        int, 0, "N", "engines that Ray Serve may start under load (default: as --replicas)"
    )
    ingresses: int = _option(
        _count, 1, "N", "processes that take requests and choose replicas (default: 1)"
    )
    prompt_schemas: str | None = _option(
        str,
        None,
        "DIR",
        "schema folder on the cluster's head node; schemas that clients send are kept there. "
        "Without it they end with the application",
    )
    margin: float = _option(
        _amount,
        MARGIN,
        "N",
        "a replica that holds a request's modules gets it, unless it has more than twice the "
        f"requests of the least busy one and these besides (default: {MARGIN:g})",
    )
    max_ongoing_requests: int = _option(
        _count, 256, "N", "requests in a replica at a time; others wait for it (default: 256)"
    )
    max_queued_requests: int = _option(
        int,
        -1,
        "N",
        "requests that wait in an ingress; more are answered 503 (default: any number)",
    )
    drain_seconds: float = _option(
        _amount, 600.0, "S", "how long a replica that stops may answer what it has (default: 600)"
    )
    replica_gpus: float | None = _option(
        _amount,
        None,
        "N",
        "GPUs of a replica (default: one for each worker, if there are any)",
    )
    replica_cpus: float = _option(
        _amount, 1.0, "N", "CPUs that Ray sets aside for a replica (default: 1)"
    )

    @staticmethod
    def parse(options: Sequence[str]) -> AppOptions:
        """Reads a command line, of which what is not ours is vLLM's.

        Raises:
            SystemExit: An option is not valid; what is wrong was printed.
        """
        ours, others = parser().parse_known_args(list(options))
        return AppOptions((*others, "--enable-prompt-modules"), **vars(ours))

    @staticmethod
    def parse_pairs(pairs: Mapping[str, Any]) -> AppOptions:
        """Reads what follows `serve run`: `model=MODEL`, and options by name, without dashes.

        Raises:
            ClientError: There is no model, or an option is not valid.
        """
        others = dict(pairs)
        if (model := others.pop("model", None)) is None:
            raise ClientError("there is no model", "serve run ...:build model=MODEL")
        options = [str(model)]
        for name, value in others.items():
            options.append(f"--{name.replace('_', '-')}")
            options += [] if str(value).lower() == "true" else [str(value)]
        try:
            return AppOptions.parse(options)
        except SystemExit:
            raise ClientError(f"options that are not valid: {' '.join(options)}") from None


def parser() -> argparse.ArgumentParser:
    """Parses our part of the command line."""
    made = argparse.ArgumentParser(
        prog="promptcache-serve",
        usage="%(prog)s MODEL [options] [options of vllm serve]",
        description="Serves a model from many replicas on Ray, one address in front of them. "
        "Requests go to the replica that holds their prompt modules.",
        allow_abbrev=False,
    )
    for each in fields(AppOptions):
        if each.metadata:
            made.add_argument(f"--{each.name.replace('_', '-')}", **each.metadata)
    return made
