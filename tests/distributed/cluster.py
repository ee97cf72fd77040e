"""A Ray cluster in this machine, and an application of real replicas on it."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import ray
from ray import serve
from ray._private.state import actors
from ray.serve.config import HTTPOptions

from vllm_promptcache.distributed.app import application
from vllm_promptcache.distributed.app_options import AppOptions

ENGINE_OPTIONS = (
    "--enforce-eager",
    "--max-model-len=1024",
    "--kv-cache-memory-bytes=67108864",
    "--dtype=float32",
    "--served-model-name=smol",
    "--prompt-modules-repair=none",
    "--prompt-modules-promote-after=0",
)
# What Ray counts; cores are shared.
_NUM_CPUS = 8


@contextmanager
def running_app(options: Sequence[str]) -> Iterator[str]:
    """Serves an application in a cluster of its own, and yields its address."""
    with tempfile.TemporaryDirectory(prefix="ray-") as home:
        environment = {
            "HOME": home,
            "RAY_USAGE_STATS_ENABLED": "0",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2])]),
        }
        with patch.dict(os.environ, environment):
            ray.init(num_cpus=_NUM_CPUS, include_dashboard=False, logging_level="ERROR")
            port = _free_port()
            try:
                serve.start(http_options=HTTPOptions(port=port))
                serve.run(application(AppOptions.parse([*options, *ENGINE_OPTIONS])))
                yield f"http://127.0.0.1:{port}"
            finally:
                serve.shutdown()
                ray.shutdown()


def kill(deployment: str, name: str | None = None) -> None:
    """Kills the process of a replica of a deployment, as `kill -9` does.

    Args:
        deployment: The deployment.
        name: The replica's own name; None for any.
    """
    os.kill(next(pid for found, pid in _processes(deployment) if name in (None, found)), 9)


def names(deployment: str) -> set[str]:
    """The names of a deployment's replicas that live."""
    return {name for name, _ in _processes(deployment)}


def children(deployment: str) -> set[int]:
    """Processes below those of a deployment's replicas."""
    import psutil

    parents = [psutil.Process(pid) for _, pid in _processes(deployment)]
    return {child.pid for parent in parents for child in parent.children(recursive=True)}


def _processes(deployment: str) -> list[tuple[str, int]]:
    """Name and process of each replica. Ray's public way to ask needs its dashboard."""
    prefix = f"SERVE_REPLICA::default#{deployment}#"
    living = actors(actor_state_name="ALIVE").values()
    return [
        (actor["Name"].removeprefix(prefix), actor["Pid"])
        for actor in living
        if actor["Name"].startswith(prefix)
    ]


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
