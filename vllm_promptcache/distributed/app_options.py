"""Options of an application of many replicas, from a command line or from `serve run`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm_promptcache.errors import ClientError

MARGIN = 4.0


@dataclass(frozen=True, slots=True)
class AppOptions:
    """What the app takes itself; the help texts are in `parser`.

    Attributes:
        replicas: Engines.
        max_replicas: Engines that there may be under load; 0 for no more than `replicas`.
        serve_options: What stands behind `vllm serve`, without `--prompt-schemas`.
    """

    replicas: int
    max_replicas: int
    ingresses: int
    prompt_schemas: str | None
    margin: float
    max_ongoing_requests: int
    max_queued_requests: int
    drain_seconds: float
    replica_gpus: float | None
    replica_cpus: float
    serve_options: tuple[str, ...]

    @staticmethod
    def parse(options: Sequence[str]) -> AppOptions:
        """Reads a command line, of which what is not ours is vLLM's.

        Raises:
            SystemExit: An option is not valid; what is wrong was printed.
        """
        ours, others = parser().parse_known_args(list(options))
        return AppOptions(**vars(ours), serve_options=(*others, "--enable-prompt-modules"))

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
    add = made.add_argument
    add("--replicas", type=int, default=1, metavar="N", help="engines (default: 1)")
    add(
        "--max-replicas",
        type=int,
        default=0,
        metavar="N",
        help="engines that Ray Serve may start under load (default: no more than --replicas)",
    )
    add(
        "--ingresses",
        type=int,
        default=1,
        metavar="N",
        help="processes that take requests and choose replicas (default: 1)",
    )
    add(
        "--prompt-schemas",
        metavar="DIR",
        help="schema folder on the cluster's head node; schemas that clients send are kept there. "
        "Without it they end with the application",
    )
    add(
        "--margin",
        type=float,
        default=MARGIN,
        metavar="N",
        help="a replica that holds a request's modules gets it, unless it has more than twice the "
        f"requests of the least busy one and these besides (default: {MARGIN:g})",
    )
    add(
        "--max-ongoing-requests",
        type=int,
        default=256,
        metavar="N",
        help="requests in a replica at a time; others wait for it (default: 256)",
    )
    add(
        "--max-queued-requests",
        type=int,
        default=-1,
        metavar="N",
        help="requests that wait in an ingress; more are answered 503 (default: any number)",
    )
    add(
        "--drain-seconds",
        type=float,
        default=600.0,
        metavar="S",
        help="how long a replica that stops may answer what it has (default: 600)",
    )
    add(
        "--replica-gpus",
        type=float,
        metavar="N",
        help="GPUs of a replica (default: one for each worker, none on machines without)",
    )
    add(
        "--replica-cpus",
        type=float,
        default=1.0,
        metavar="N",
        help="CPUs that Ray sets aside for a replica (default: 1)",
    )
    return made
