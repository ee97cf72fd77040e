"""The Serve application: an ingress, replicas, and the registry of their schemas.

serve run vllm_promptcache.distributed.app:build model=MODEL replicas=2
"""

from __future__ import annotations

import asyncio
import tempfile
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, RequestRouterConfig

from vllm_promptcache.compat.api_server import serve_arguments
from vllm_promptcache.distributed.app_options import AppOptions
from vllm_promptcache.distributed.file_tree import FileTree
from vllm_promptcache.distributed.ingress import Ingress
from vllm_promptcache.distributed.registry import SchemaRegistry
from vllm_promptcache.distributed.replica import Replica
from vllm_promptcache.distributed.router import ModuleAffinityRouter

# The node that the cluster was started on; it has the folder that the user names.
_HEAD_NODE = {"node:__internal_head__": 0.001}
# Each replica always waits for changes.
_MAX_NUM_REPLICAS = 10_000
_STATS_PERIOD_S = 0.5


class RegistryDeployment(SchemaRegistry):
    """A registry as a deployment of one replica, which Serve starts again when it dies.

    Args:
        folder: The schema folder; None for one that is not kept.
    """

    async def __init__(self, folder: str | None) -> None:  # type: ignore[misc]
        path = Path(folder or tempfile.mkdtemp(prefix="prompt-schemas-"))
        path.mkdir(parents=True, exist_ok=True)
        super().__init__(FileTree(path))
        await self.look()
        self._watching = asyncio.create_task(self.watch())


def build(args: Mapping[str, Any]) -> Application:
    """Makes the application of what stands behind `serve run`.

    Args:
        args: `model`, and options of `promptcache-serve` and `vllm serve`, without their dashes.

    Raises:
        ClientError: They are not valid.
    """
    return application(AppOptions.parse_pairs(args))


def module_affinity(margin: float) -> RequestRouterConfig:
    """How a deployment of ours is routed, for other applications as well.

    Its requests have a `Hint` as their first argument, and its replicas a `record_routing_stats` as
    `Replica` has.
    """
    return RequestRouterConfig(
        request_router_class=ModuleAffinityRouter,
        request_router_kwargs={"margin": margin},
        request_routing_stats_period_s=_STATS_PERIOD_S,
    )


def application(options: AppOptions, routing: RequestRouterConfig | None = None) -> Application:
    """Makes the application of some options, for the cluster that this process is connected to.

    Args:
        options: All that users may say.
        routing: Another way to route than `module_affinity`, to be compared with it.

    Raises:
        SystemExit: An option of vLLM's is not valid; what is wrong was printed.
    """
    vllm_args = serve_arguments(options.serve_options)
    registry = serve.deployment(
        RegistryDeployment,
        name="registry",
        max_ongoing_requests=_MAX_NUM_REPLICAS,
        ray_actor_options={"num_cpus": 0, "resources": _HEAD_NODE},
    ).bind(options.prompt_schemas)
    replicas = serve.deployment(
        Replica,
        name="replicas",
        max_ongoing_requests=options.max_ongoing_requests,
        max_queued_requests=options.max_queued_requests,
        request_router_config=routing or module_affinity(options.margin),
        graceful_shutdown_timeout_s=options.drain_seconds,
        ray_actor_options={
            "num_cpus": options.replica_cpus,
            "num_gpus": _num_gpus(options, vllm_args),
        },
        **_scaling(options),
    ).bind(options.serve_options, registry)
    ingress = serve.deployment(
        Ingress,
        name="ingress",
        num_replicas=options.ingresses,
        max_ongoing_requests=_MAX_NUM_REPLICAS,
        ray_actor_options={"num_cpus": 0},
    )
    return ingress.bind(replicas)


def _scaling(options: AppOptions) -> dict[str, Any]:
    if options.max_replicas <= options.replicas:
        return {"num_replicas": options.replicas}
    scaling = AutoscalingConfig(
        min_replicas=options.replicas,
        max_replicas=options.max_replicas,
        target_ongoing_requests=options.max_ongoing_requests / 2,
    )
    return {"autoscaling_config": scaling}


def _num_gpus(options: AppOptions, vllm_args: Namespace) -> float:
    if options.replica_gpus is not None:
        return options.replica_gpus
    # Not what this machine has: the head of a cluster often has none.
    if not ray.cluster_resources().get("GPU"):
        return 0
    sizes = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
    num_workers = 1
    for size in sizes:
        num_workers *= getattr(vllm_args, size)
    return num_workers
