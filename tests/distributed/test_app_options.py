"""Options of `promptcache-serve`, of `serve run`, and those of vLLM beside them."""

from __future__ import annotations

import pytest

from vllm_promptcache.distributed.app_options import AppOptions
from vllm_promptcache.errors import ClientError

COMMAND = ["MODEL", "--replicas", "2", "--enforce-eager", "--dtype=float32", "--margin", "3"]


def test_what_is_not_ours_is_vllms() -> None:
    options = AppOptions.parse(COMMAND)
    assert (options.replicas, options.margin, options.prompt_schemas) == (2, 3.0, None)
    vllm = ("MODEL", "--enforce-eager", "--dtype=float32", "--enable-prompt-modules")
    assert options.serve_options == vllm


def test_pairs_are_the_same_options() -> None:
    pairs = {"model": "MODEL", "replicas": 2, "enforce_eager": "true", "margin": "3"}
    options = AppOptions.parse_pairs(pairs | {"dtype": "float32"})
    assert set(options.serve_options) == {
        "MODEL",
        "--enforce-eager",
        "--dtype",
        "float32",
        "--enable-prompt-modules",
    }
    assert (options.replicas, options.margin) == (2, 3.0)


@pytest.mark.parametrize(
    "pairs", [{}, {"model": "M", "replicas": "many"}, {"model": "M", "replicas": 0}]
)
def test_bad_pairs_are_told(pairs: dict[str, str]) -> None:
    with pytest.raises(ClientError, match=r"no model|not valid"):
        AppOptions.parse_pairs(pairs)
