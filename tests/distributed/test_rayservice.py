"""The manifest for Kubernetes: what it says to Ray Serve and to the app is valid."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from vllm_promptcache.distributed.app_options import AppOptions

MANIFEST = Path(__file__).parents[2] / "docs" / "rayservice.yaml"


@pytest.fixture(scope="module")
def serve_config() -> dict[str, Any]:
    spec = yaml.safe_load(MANIFEST.read_text())["spec"]
    config: dict[str, Any] = yaml.safe_load(spec["serveConfigV2"])
    return config


def test_its_arguments_are_options(serve_config: dict[str, Any]) -> None:
    options = AppOptions.parse_pairs(serve_config["applications"][0]["args"])
    assert (options.replicas, options.replica_gpus, options.prompt_schemas) == (2, 1, "/schemas")
    vllm = ("MODEL", "--prompt-modules-dir", "/modules", "--enable-prompt-modules")
    assert options.serve_options == vllm


@pytest.mark.skipif(not find_spec("ray"), reason="needs Ray")
def test_ray_takes_it(serve_config: dict[str, Any]) -> None:
    from ray.serve.schema import ServeDeploySchema

    (app,) = ServeDeploySchema.model_validate(serve_config).applications
    (deployment,) = app.deployments
    assert (deployment.name, deployment.num_replicas) == ("replicas", 2)
