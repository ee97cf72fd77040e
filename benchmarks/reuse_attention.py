"""Attention of the reuse study: the function, and what is added to its logits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks.reuse_prompt import Prompt


class GroupedAttention:
    """Attention in which the heads that share a key are rows of one product.

    The library's function copies each key once for each of its heads, in each step and for all of
    a batch's caches. This one also sums up attention where the study asks for it.
    """

    def __init__(self) -> None:
        self._total: torch.Tensor | None = None
        self._rows: Sequence[int] = ()

    @contextmanager
    def observe(
        self, rows: Sequence[int], num_layers: int, num_keys: int
    ) -> Iterator[torch.Tensor]:
        """Sums up the attention of some rows of the new tokens, until the block is left.

        Yields:
            The sum over rows and heads, [layer, key]; filled by each forward.
        """
        self._rows, self._total = rows, torch.zeros(num_layers, num_keys)
        try:
            yield self._total
        finally:
            self._total = None

    def __call__(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor,
        scaling: float,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        """As the library calls it: queries are [batch, head, token, dim]."""
        batch, num_heads, num_tokens, dim = query.shape
        num_groups = num_heads // key.shape[1]
        rows = query.reshape(batch, key.shape[1], num_groups * num_tokens, dim)
        bias = attention_mask.repeat(1, 1, num_groups, 1)
        if self._total is not None:
            logits = (rows @ key.transpose(2, 3)).float() * scaling + bias
            shares = logits.softmax(-1).unflatten(2, (num_groups, num_tokens))
            self._total[module.layer_idx] += shares[..., self._rows, :].sum(dim=(0, 1, 2, 3))
        output = torch.nn.functional.scaled_dot_product_attention(
            rows, key, value, attn_mask=bias, scale=scaling
        )
        return output.reshape(batch, num_heads, num_tokens, dim).transpose(1, 2), None


def visible(queries: torch.Tensor, keys: torch.Tensor, num_open: int = 0) -> torch.Tensor:
    """Zero where a key is not behind the query or among the first `num_open`, else -inf."""
    hidden = keys[None] > queries[:, None]
    hidden[:, :num_open] = False
    return torch.zeros(hidden.shape).masked_fill(hidden, float("-inf"))


def module_bias(prompt: Prompt, positions: torch.Tensor, weight: float) -> torch.Tensor:
    """The bias by which tokens of modules have `weight` times their attention."""
    is_module = (positions >= prompt.num_root) & (positions < prompt.num_reused)
    return is_module * math.log(weight)
