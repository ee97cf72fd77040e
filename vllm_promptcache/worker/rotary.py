"""How a loaded model rotates its keys, if modules can be relocated in its KV cache."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from vllm_promptcache.kernels.rotation import Rotation
from vllm_promptcache.kernels.transfers import to_device
from vllm_promptcache.steps.slots import ranges
from vllm_promptcache.steps.step import RelocationCopy

# Attention layers of vLLM that rotate all their keys by `rotary_emb` and store them as they are
# then. Others may skip it in some layers, without a sign of it.
_KNOWN = ("LlamaAttention", "MistralAttention", "Qwen2Attention", "Qwen3Attention")


@dataclass(frozen=True, slots=True)
class Rotary:
    """The rotation of a model's keys; the same in all its layers.

    Attributes:
        cos_sin_cache: The model's own, `[num_positions, rotary_dim]`: cosines, then sines.
        is_neox: Whether pairs are made of the two halves of a key, or of neighbours.
        head_size: Elements of a key.
    """

    cos_sin_cache: torch.Tensor
    is_neox: bool
    head_size: int

    @classmethod
    def find(cls, model: torch.nn.Module, layer_names: Iterable[str]) -> Rotary | None:
        """Looks for the rotation of a loaded model.

        Args:
            model: The model.
            layer_names: Names of vLLM's attention layers in it.

        Returns:
            None if it is not known how the model rotates its keys.
        """
        parents = [model.get_submodule(name.rpartition(".")[0]) for name in layer_names]
        if not all(type(parent).__name__ in _KNOWN for parent in parents):
            return None
        rotary, *others = (getattr(parent, "rotary_emb", None) for parent in parents)
        if rotary is None or any(other is not rotary for other in others):
            return None
        return cls(_cos_sin_cache(rotary), getattr(rotary, "is_neox_style", True), rotary.head_size)

    def between(self, copy: RelocationCopy) -> Rotation:
        """The rotation of all tokens of a module that is relocated."""
        positions = ranges((run.start, run.num_tokens) for run in copy.kept)
        old = to_device(positions, self.cos_sin_cache.device)
        return Rotation.between(self.cos_sin_cache, old, old + copy.shift, is_neox=self.is_neox)


def _cos_sin_cache(rotary: Any) -> torch.Tensor:
    """The rows for positions from 0 on; LongRoPE has those of its short factors before them."""
    if (both := getattr(rotary, "long_short_cos_sin_cache", None)) is None:
        cache: torch.Tensor = rotary.cos_sin_cache
        return cache
    rows: torch.Tensor = both[rotary.original_max_position_embeddings :]
    return rows if rotary.use_long_rope else both
