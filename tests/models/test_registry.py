"""Every embedded model names exact packages and a full hash."""

import re

import pytest

from vllm_promptcache.errors import ModelError
from vllm_promptcache.models import DEFAULT_MODEL, MODELS, ModelSpec
from vllm_promptcache.models.registry import find_spec


@pytest.mark.parametrize("spec", MODELS.values(), ids=MODELS.keys())
def test_packages_and_hash_are_pinned(spec: ModelSpec) -> None:
    assert re.fullmatch(r"[0-9a-f]{64}", spec.sha256)
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9.]+", package) for package in spec.packages)


def test_default_model_exists() -> None:
    assert find_spec(DEFAULT_MODEL).name == DEFAULT_MODEL


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ModelError, match="choose from: smollm2-135m"):
        find_spec("gpt-5")
