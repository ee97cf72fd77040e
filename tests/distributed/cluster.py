"""A Ray cluster in this machine, and an application of real replicas on it."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import ray
from ray import serve
from ray._private.state import actors
from ray.cluster_utils import Cluster
from ray.serve.config import HTTPOptions
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from vllm_promptcache.distributed.app import application
from vllm_promptcache.distributed.app_options import AppOptions
from vllm_promptcache.distributed.http import HttpRequest

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
# Replicas start one after the other; two cores take a minute and more for each.
PATIENCE_S = 900.0


@contextmanager
def running_cluster(num_nodes: int = 1) -> Iterator[str]:
    """Starts nodes and Serve; yields the address that applications will have."""
    with tempfile.TemporaryDirectory(prefix="ray-") as home:
        environment = {
            "HOME": home,
            "RAY_USAGE_STATS_ENABLED": "0",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2])]),
        }
        with patch.dict(os.environ, environment):
            node = {"num_cpus": _NUM_CPUS, "include_dashboard": False}
            cluster = Cluster(initialize_head=True, head_node_args=node)
            for _ in range(1, num_nodes):
                cluster.add_node(num_cpus=_NUM_CPUS)
            ray.init(address=cluster.address, logging_level="ERROR")
            port = _free_port()
            try:
                serve.start(http_options=HTTPOptions(port=port))
                yield f"http://127.0.0.1:{port}"
            finally:
                serve.shutdown()
                ray.shutdown()
                cluster.shutdown()


def deploy(options: Sequence[str]) -> None:
    """Serves an application, in place of the one that is there, and waits for it."""
    serve.run(application(AppOptions.parse([*options, *ENGINE_OPTIONS])))


def deploy_as_configured(args: Mapping[str, Any], num_replicas: int) -> None:
    """Does what `serve deploy` and KubeRay do, and waits for it.

    Args:
        args: What would stand behind `serve run`; others than before replace all replicas.
        num_replicas: Another number than before lets the others be.
    """
    defaults = (option.removeprefix("--").partition("=") for option in ENGINE_OPTIONS)
    app = {
        "name": "default",
        "import_path": "vllm_promptcache.distributed.app:build",
        "args": {name: value or "true" for name, _, value in defaults} | dict(args),
        "deployments": [{"name": "replicas", "num_replicas": num_replicas}],
    }
    _get_global_client().deploy_apps(ServeDeploySchema.model_validate({"applications": [app]}))
    deadline = time.monotonic() + PATIENCE_S
    while not _has(num_replicas):
        assert time.monotonic() < deadline, serve.status()
        time.sleep(1)


def _has(num_replicas: int) -> bool:
    """Whether an application runs with as many replicas, none of which is on its way."""
    app = serve.status().applications.get("default")
    if app is None or app.status != "RUNNING":
        return False
    return app.deployments["replicas"].replica_states == {"RUNNING": num_replicas}


@contextmanager
def running_app(options: Sequence[str]) -> Iterator[str]:
    """Serves an application in a cluster of its own, and yields its address."""
    with running_cluster() as address:
        deploy(options)
        yield address


def kill(deployment: str, name: str | None = None) -> None:
    """Kills the process of a replica of a deployment, as `kill -9` does.

    Args:
        deployment: The deployment.
        name: The replica's own name; None for any.
    """
    os.kill(next(actor["Pid"] for actor in _replicas(deployment, name)), 9)


def names(deployment: str) -> set[str]:
    """The names of a deployment's replicas that live."""
    return {actor["Name"].rpartition("#")[2] for actor in _replicas(deployment)}


def nodes(deployment: str) -> set[str]:
    """The nodes that a deployment's replicas are on."""
    return {actor["Address"]["NodeID"] for actor in _replicas(deployment)}


def children(deployment: str) -> set[int]:
    """Processes below those of a deployment's replicas."""
    import psutil

    parents = [psutil.Process(actor["Pid"]) for actor in _replicas(deployment)]
    return {child.pid for parent in parents for child in parent.children(recursive=True)}


def counted(metric: str) -> dict[str, float]:
    """The sum of a metric of vLLM's or ours over its labels, by replica."""
    found = dict[str, float]()
    deadline = time.monotonic() + PATIENCE_S
    while found.keys() != (living := names("replicas")):
        assert time.monotonic() < deadline, f"of {living} only {found.keys()} answer"
        for name, text in asyncio.run(_some_metrics()):
            values = re.findall(rf"^{metric}(?:{{.*}})? (\S+)$", text, re.MULTILINE)
            found[name] = sum(map(float, values))
    return found


async def _some_metrics() -> list[tuple[str, str]]:
    """Names and metrics of replicas: of several requests at once each goes where fewest are."""
    return await asyncio.gather(*(_metrics() for _ in range(4)))


async def _metrics() -> tuple[str, str]:
    """Name and metrics of a replica."""
    handle = serve.get_deployment_handle("replicas", "default").options(stream=True)
    head: Any = None
    body = b""
    async for piece in handle.respond.remote(None, HttpRequest("GET", "/metrics")):
        head, body = (head, body + piece) if head else (piece, b"")
    return dict(head.headers)[b"x-replica"].decode(), body.decode()


def _replicas(deployment: str, name: str | None = None) -> list[dict[str, Any]]:
    """Living replicas as Ray knows them. Its public way to ask needs its dashboard."""
    prefix = f"SERVE_REPLICA::default#{deployment}#{name or ''}"
    living = actors(actor_state_name="ALIVE").values()
    return [actor for actor in living if actor["Name"].startswith(prefix)]


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
