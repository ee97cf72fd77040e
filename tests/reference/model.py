"""Runs an explained prompt through a Hugging Face model, one sequence at a time."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.models.llama.modeling_llama import rotate_half

from tests.reference.kv import KV

# Tokens whose KV is kept for further prompts: about a GiB of SmolLM2-135M in float32.
MAX_KEPT_TOKENS = 20_000

Explanation = dict[str, Any]
EncodeId = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class ReferenceOutput:
    """What a prompt is followed by.

    Attributes:
        logprobs: Log-probabilities of every step, `[num_steps, vocab_size]`, float32.
        token_ids: The most probable token of each step, `[num_steps]`.
        margins: By how much it leads the runner-up, in nats: where this is about as small as the
            rounding error, another token is as right.
    """

    logprobs: torch.Tensor
    token_ids: list[int]
    margins: list[float]

    @property
    def first_logprobs(self) -> torch.Tensor:
        """Log-probabilities of the first generated token, `[vocab_size]`."""
        return self.logprobs[0]

    @staticmethod
    def of_logits(logits: torch.Tensor) -> ReferenceOutput:
        """Returns the output whose steps have `logits`, `[num_steps, vocab_size]`."""
        logprobs = logits.float().log_softmax(dim=-1)
        best = logprobs.topk(2, dim=-1)
        margins = best.values[:, 0] - best.values[:, 1]
        return ReferenceOutput(logprobs, best.indices[:, 0].tolist(), margins.tolist())


class Reference:
    """Prompt modules done by hand: encode each alone, put the KV together, prefill the rest.

    Modules are kept once encoded, up to `MAX_KEPT_TOKENS`.
    """

    def __init__(self, model_path: str | Path, dtype: torch.dtype = torch.float32) -> None:
        # Eager attention takes the mask as given; the other kinds may replace it by their own.
        self.model = AutoModelForCausalLM.from_pretrained(
            model_path, dtype=dtype, attn_implementation="eager"
        ).eval()
        self._dtype = dtype
        self._encoded: dict[EncodeId, KV] = {}

    def run(self, explanation: Explanation, max_tokens: int) -> ReferenceOutput:
        """Generates `max_tokens` tokens greedily behind an explained prompt."""
        return self._generate(*self._start(explanation), max_tokens)

    def score(self, explanation: Explanation, output_ids: Sequence[int]) -> ReferenceOutput:
        """Returns what `run` would choose at each step if the steps before chose `output_ids`.

        One forward pass instead of many: `score(e, ids).token_ids == ids` if and only if
        `run(e, len(ids)).token_ids == ids`.
        """
        return self._score(*self._start(explanation), output_ids)

    @torch.inference_mode()
    def attention(self, explanation: Explanation, num_last: int) -> torch.Tensor:
        """What the last `num_last` new tokens attend to, summed over layers and heads.

        Returns:
            `[num_cached_tokens]`, for the reused tokens of all modules in order.
        """
        cache, cached, token_ids, position_ids = self._start(explanation)
        layers = self.model(
            input_ids=torch.tensor([token_ids]),
            position_ids=torch.tensor([position_ids]),
            attention_mask=self._mask(cached, position_ids),
            past_key_values=cache,
            output_attentions=True,
        ).attentions
        total = sum(layer[0, :, -num_last:, : len(cached)].sum(dim=(0, 1)) for layer in layers)
        assert isinstance(total, torch.Tensor)
        return total

    def plain(
        self, token_ids: Sequence[int], position_ids: Sequence[int], max_tokens: int
    ) -> ReferenceOutput:
        """Generates behind one ordinary prefill of `token_ids` at `position_ids`."""
        return self._generate(DynamicCache(), [], token_ids, position_ids, max_tokens)

    def score_plain(
        self, token_ids: Sequence[int], position_ids: Sequence[int], output_ids: Sequence[int]
    ) -> ReferenceOutput:
        """Is to `plain` what `score` is to `run`."""
        return self._score(DynamicCache(), [], token_ids, position_ids, output_ids)

    def cached_kv(self, explanation: Explanation) -> KV:
        """Returns the KV that an explained prompt starts from: its modules' kept tokens."""
        modules = explanation["modules"]
        return KV.concat([self._reused(modules, index) for index in range(len(modules))])

    def _start(
        self, explanation: Explanation
    ) -> tuple[DynamicCache, list[int], list[int], list[int]]:
        """Returns the cache, the positions in it, the new tokens and their positions, ascending."""
        new = [
            (position_id, token_id)
            for part in explanation["new"]
            for position_id, token_id in zip(part["position_ids"], part["token_ids"], strict=True)
        ]
        new.sort()
        position_ids = [position_id for position_id, _ in new]
        if len(set(position_ids)) < len(position_ids):
            raise ValueError("two new tokens share a position")
        if position_ids[-1] + 1 != explanation["next_position"]:
            raise ValueError("generated tokens must follow the last new token")
        cache = self.cached_kv(explanation).to_cache()
        cached = [
            position_id
            for module in explanation["modules"]
            for position_id, is_reused in zip(module["position_ids"], module["reused"], strict=True)
            if is_reused
        ]
        return cache, cached, [token_id for _, token_id in new], position_ids

    def _reused(self, modules: list[dict[str, Any]], index: int) -> KV:
        """Returns the KV of those of a module's tokens that the prompt reads, where it has them."""
        module, kv = modules[index], self._taken(modules, index, "reused")
        if not (shift := shift_of(module)):
            return kv
        encoded_at = zip(module["encoded_position_ids"], module["reused"], strict=True)
        return self._moved(kv, [position for position, is_reused in encoded_at if is_reused], shift)

    def _moved(self, kv: KV, positions: Sequence[int], shift: int) -> KV:
        """Turns keys back from the positions that they were encoded at, and on to others."""
        old = torch.tensor([list(positions)])
        # The model's own angles, which at large positions are rounded by more than keys are.
        rotary = self.model.base_model.rotary_emb
        (cos, sin), (new_cos, new_sin) = (rotary(torch.empty(0), at) for at in (old, old + shift))

        def moved(key: torch.Tensor) -> torch.Tensor:
            raw = (key * cos - rotate_half(key) * sin) / (cos**2 + sin**2)
            return (raw * new_cos + rotate_half(raw) * new_sin).to(key.dtype)

        return KV(tuple((moved(key), value) for key, value in kv.layers))

    def _taken(self, modules: list[dict[str, Any]], index: int, which: str) -> KV:
        """Returns the KV of those of a module's tokens that are `kept` or `reused`."""
        taken = [i for i, is_taken in enumerate(modules[index][which]) if is_taken]
        return self._encode(modules, index).take(torch.tensor(taken)) if taken else KV()

    def _encode(self, modules: list[dict[str, Any]], index: int) -> KV:
        """Returns the KV of all of a module's tokens, placeholders included."""
        encode_id = _encode_id(modules, index)
        if encode_id not in self._encoded:
            module = modules[index]
            taken = [(self._taken(modules, i, "kept"), n) for i, n in module["context"]]
            context = KV.concat([kept.first(n) for kept, n in taken])
            cache = context.to_cache()
            # All of the context is visible, wherever it lies.
            before = [-sys.maxsize] * context.num_tokens
            positions = module["encoded_position_ids"]
            self._forward(cache, before, module["token_ids"], positions, num_logits=1)
            self._keep(encode_id, KV.of_cache(cache, context.num_tokens))
        return self._encoded[encode_id]

    def _keep(self, encode_id: EncodeId, encoded: KV) -> None:
        while sum(kv.num_tokens for kv in self._encoded.values()) > MAX_KEPT_TOKENS:
            self._encoded.pop(next(iter(self._encoded)))
        self._encoded[encode_id] = encoded

    def _generate(
        self,
        cache: DynamicCache,
        cached: Sequence[int],
        token_ids: Sequence[int],
        position_ids: Sequence[int],
        max_tokens: int,
    ) -> ReferenceOutput:
        logits = [self._forward(cache, cached, token_ids, position_ids, num_logits=1)]
        cached = [*cached, *position_ids]
        for position_id in range(position_ids[-1] + 1, position_ids[-1] + max_tokens):
            best = int(logits[-1].argmax())
            logits.append(self._forward(cache, cached, [best], [position_id], num_logits=1))
            cached.append(position_id)
        return ReferenceOutput.of_logits(torch.cat(logits))

    def _score(
        self,
        cache: DynamicCache,
        cached: Sequence[int],
        token_ids: Sequence[int],
        position_ids: Sequence[int],
        output_ids: Sequence[int],
    ) -> ReferenceOutput:
        start = position_ids[-1] + 1
        # The last output token is compared, never read.
        num_read = len(output_ids) - 1
        token_ids = [*token_ids, *output_ids[:num_read]]
        position_ids = [*position_ids, *range(start, start + num_read)]
        logits = self._forward(cache, cached, token_ids, position_ids, num_logits=len(output_ids))
        return ReferenceOutput.of_logits(logits)

    @torch.inference_mode()
    def _forward(
        self,
        cache: DynamicCache,
        cached: Sequence[int],
        token_ids: Sequence[int],
        position_ids: Sequence[int],
        num_logits: int,
    ) -> torch.Tensor:
        """Appends tokens to `cache`; returns the last ones' logits, `[num_logits, vocab_size]`.

        Args:
            cached: Positions of the tokens in the cache.
        """
        return self.model(
            input_ids=torch.tensor([list(token_ids)]),
            position_ids=torch.tensor([list(position_ids)]),
            attention_mask=self._mask(cached, position_ids),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=num_logits,
        ).logits[0]

    def _mask(self, cached: Sequence[int], new: Sequence[int]) -> torch.Tensor:
        """Each new token sees the tokens at its own position or before; `[1, 1, new, tokens]`.

        Given explicitly: transformers' own mask guesses packed sequences from jumps in the
        position ids.
        """
        queries, keys = torch.tensor([*new]), torch.tensor([*cached, *new])
        mask = torch.zeros((len(queries), len(keys)), dtype=self._dtype)
        lowest = torch.finfo(self._dtype).min
        return mask.masked_fill(keys > queries[:, None], lowest)[None, None]


def shift_of(module: dict[str, Any]) -> int:
    """How far the tokens that are read of a module were moved; all of them alike."""
    places = zip(
        module["position_ids"], module["encoded_position_ids"], module["reused"], strict=True
    )
    shifts = {position - encoded for position, encoded, is_reused in places if is_reused}
    assert len(shifts) <= 1, "a module is moved as a whole"
    return shifts.pop() if shifts else 0


def _encode_id(modules: list[dict[str, Any]], index: int) -> EncodeId:
    """Returns all that the KV of a module depends on."""
    module = modules[index]
    context = tuple(
        (_encode_id(modules, i), tuple(modules[i]["kept"]), n) for i, n in module["context"]
    )
    return tuple(module["token_ids"]), tuple(module["encoded_position_ids"]), context
