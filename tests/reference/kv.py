"""The KV of a run of tokens, outside of any cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache


@dataclass(frozen=True, slots=True)
class KV:
    """Keys (after RoPE) and values of some tokens in every layer.

    Attributes:
        layers: `(keys, values)` per layer, each `[1, num_kv_heads, num_tokens, head_dim]`; empty
            where there are no tokens.
    """

    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens whose KV this is."""
        return self.layers[0][0].shape[2] if self.layers else 0

    def take(self, index: torch.Tensor) -> KV:
        """Returns the KV of the tokens `index`, `[num_taken]` integers."""
        return KV(tuple((k[:, :, index], v[:, :, index]) for k, v in self.layers))

    def first(self, num_tokens: int) -> KV:
        """Returns the KV of the first `num_tokens` tokens."""
        if num_tokens > self.num_tokens:
            raise ValueError(f"{num_tokens} tokens asked of a KV of {self.num_tokens}")
        return self.take(torch.arange(num_tokens))

    def to_cache(self) -> DynamicCache:
        """Returns a fresh cache that holds these tokens; growing it leaves `self` as it is."""
        return DynamicCache(self.layers or None)

    @staticmethod
    def of_cache(cache: DynamicCache, start: int) -> KV:
        """Returns the KV of all tokens in `cache` from index `start` on."""
        return KV(
            tuple((layer.keys[:, :, start:], layer.values[:, :, start:]) for layer in cache.layers)
        )

    @staticmethod
    def concat(parts: Sequence[KV]) -> KV:
        """Returns the tokens of all `parts`, in that order."""
        filled = [part.layers for part in parts if part.num_tokens]
        return KV(
            tuple(
                (torch.cat([k for k, _ in layer], dim=2), torch.cat([v for _, v in layer], dim=2))
                for layer in zip(*filled, strict=True)
            )
        )
