"""Which tokens of a sequence the last ones attend to, measured while a step runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from vllm_promptcache.kernels.block_rows import BlockRows
from vllm_promptcache.kernels.transfers import HostCopy, to_device
from vllm_promptcache.steps.slots import Slots

# 8-bit floats are not among them: their values are scaled.
_PLAIN_TYPES = (torch.float16, torch.bfloat16, torch.float32)
# How backends write that a layer has no sliding window.
_NO_WINDOW = (None, -1, (-1, -1))


@dataclass(frozen=True, slots=True)
class ObservedTokens:
    """The last tokens of a request in a step, and where the KV of its sequence lies.

    Attributes:
        request_id: The request; observed once in a step.
        rows: Rows of the tokens in the step's batch, one after the other.
        slots: `[num_tokens]`, the last of which are those of `rows`, in their order. Each observed
            token sees its own slot and all before it.
    """

    request_id: str
    rows: range
    slots: Slots


@dataclass(frozen=True, slots=True)
class _Observation:
    """What the layers share of a request.

    Attributes:
        tokens: What is observed.
        index: Where keys are in a layer's cache, `[num_tokens * num_key_elements]`. One flat index:
            to gather by a block and an element of it takes 19 times as long on a CPU.
        is_hidden: `[num_rows, num_tokens]`, whether a token comes after an observed one.
        total: Attention to each token so far, `[num_tokens]` float32; mutated by each layer.
    """

    tokens: ObservedTokens
    index: torch.Tensor
    is_hidden: torch.Tensor
    total: torch.Tensor


class MeasuredAttention(Mapping[str, npt.NDArray[np.float32]]):
    """What `AttentionProbe.take` gave, as arrays: one that is read, or pickled, is waited for.

    The scheduler reads it with the tokens that were sampled in the same step, so it is there by
    then; workers in processes of their own pickle it, under asynchronous scheduling in a thread
    that waits for these tokens.
    """

    def __init__(self, copies: dict[str, HostCopy]) -> None:
        self._copies = copies

    def __getitem__(self, request_id: str) -> npt.NDArray[np.float32]:
        return self._copies[request_id].wait().numpy()

    def __iter__(self) -> Iterator[str]:
        return iter(self._copies)

    def __len__(self) -> int:
        return len(self._copies)

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


@dataclass(slots=True)
class AttentionProbe:
    """Sums up attention while a step's forward pass runs.

    Sees the layers and heads of its own worker only, and none that a full CUDA graph replays.
    """

    _layers: dict[str, Any]
    _caches: dict[str, torch.Tensor]
    _block_stride: int
    _key_elements: torch.Tensor
    _observations: list[_Observation] = field(default_factory=list)
    # Whether a layer has seen them.
    _has_seen: bool = False

    @classmethod
    def create(
        cls,
        layers: Mapping[str, Any],
        kv_caches: Mapping[str, torch.Tensor],
        slot_elements: torch.Tensor,
    ) -> AttentionProbe | None:
        """Looks whether attention can be computed from the KV cache; changes nothing.

        Args:
            layers: vLLM's attention layers by name.
            kv_caches: KV cache of each, `[num_blocks, ...]`; see `BlockRows.of_layers`.
            slot_elements: `[num_elements, block_size]`, from `probe_slot_elements`.

        Returns:
            None if keys are quantized, or if a layer attends by more than its queries and keys.
        """
        if any(kv_caches[name].dtype not in _PLAIN_TYPES for name in layers):
            return None
        if not all(map(_is_plain, layers.values())):
            return None
        blocks = BlockRows.of_layers((kv_caches[name] for name in layers), slot_elements.numel())
        caches = {name: rows.memory for name, rows in zip(layers, blocks, strict=True)}
        key_elements = slot_elements[: len(slot_elements) // 2].to(blocks[0].rows.device)
        return cls(dict(layers), caches, blocks[0].block_stride, key_elements)

    def start(self, observed: Sequence[ObservedTokens]) -> None:
        """Observes the coming forward pass, until `take`.

        Mutates the layers' `impl`. What was observed before and not taken is dropped.
        """
        self._stop()
        self._has_seen = False
        self._observations = [self._prepare(tokens) for tokens in observed]
        if self._observations:
            for name, layer in self._layers.items():
                self._install(name, layer)

    def take(self) -> dict[str, HostCopy]:
        """Ends what `start` began; does not wait for the device.

        Returns:
            For each request the attention to each token of its sequence `[num_tokens]`, as in
            `slots`, summed over layers, heads and observed tokens. Nothing if no layer has seen
            them.
        """
        self._stop()
        observations, self._observations = self._observations, []
        if not self._has_seen:
            return {}
        return {seen.tokens.request_id: HostCopy.of(seen.total) for seen in observations}

    def _stop(self) -> None:
        if self._observations:
            for layer in self._layers.values():
                vars(layer.impl).pop("forward", None)

    def _prepare(self, tokens: ObservedTokens) -> _Observation:
        block_size, device = self._key_elements.shape[1], self._key_elements.device
        slots = to_device(tokens.slots, device)
        first_elements = (slots // block_size * self._block_stride)[:, None]
        index = (first_elements + self._key_elements.T[slots % block_size]).view(-1)
        num_rows, num_tokens = len(tokens.rows), len(slots)
        is_hidden = torch.ones(num_rows, num_tokens, dtype=torch.bool, device=device)
        is_hidden = is_hidden.triu(num_tokens - num_rows + 1)
        total = torch.zeros(num_tokens, dtype=torch.float32, device=device)
        return _Observation(tokens, index, is_hidden, total)

    def _install(self, name: str, layer: Any) -> None:
        original = layer.impl.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            output = original(*args, **kwargs)
            _, query, _, _, _, attn_metadata, *_ = args
            # There is none when vLLM warms up.
            if attn_metadata is not None:
                self._observe(name, layer, query)
            return output

        layer.impl.forward = forward

    @torch.inference_mode()
    def _observe(self, name: str, layer: Any, query: torch.Tensor) -> None:
        """Adds a layer's attention to the totals; the keys of the step are in the cache by now."""
        self._has_seen = True
        # One group of query heads for each head of keys.
        query = query.reshape(len(query), layer.num_kv_heads, -1, layer.head_size)
        for seen in self._observations:
            keys = self._caches[name].index_select(0, seen.index)
            keys = keys.view(-1, layer.num_kv_heads, layer.head_size)
            rows = query[seen.tokens.rows.start : seen.tokens.rows.stop]
            logits = torch.einsum("rkgd,tkd->kgrt", rows.float(), keys.float()) * layer.impl.scale
            logits.masked_fill_(seen.is_hidden, -torch.inf)
            seen.total.add_(logits.softmax(dim=-1).sum(dim=(0, 1, 2)))


def _is_plain(layer: Any) -> bool:
    """Whether a layer's attention is the softmax of queries times keys of all tokens before."""
    impl = layer.impl
    return (
        getattr(impl, "sliding_window", None) in _NO_WINDOW
        and (getattr(impl, "logits_soft_cap", None) or 0) <= 0
        and getattr(impl, "alibi_slopes", None) is None
        and getattr(impl, "sinks", None) is None
        and getattr(layer, "attention_chunk_size", None) is None
    )
