"""The model of the reuse study, with caches as tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer, DynamicCache
from transformers.models.llama.modeling_llama import rotate_half

from benchmarks.reuse_attention import GroupedAttention, visible
from benchmarks.reuse_prompt import STOP


class Reader:
    """A model with its tokenizer, and caches as tensors of [layer, key or value, head, token, dim].

    One tensor, because choosing tokens of a cache is then indexing its fourth dimension.
    """

    def __init__(self, folder: str) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        # In float32, because most CPUs are no faster in bfloat16 and it adds noise of its own.
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.attention = GroupedAttention()
        AttentionInterface.register("grouped", self.attention)
        self.model.set_attn_implementation("grouped")
        self.stop = self.tokenizer.convert_tokens_to_ids(STOP)
        self._prefixes: dict[tuple[int, ...], torch.Tensor] = {}

    def forward(
        self,
        token_ids: Sequence[int],
        positions: Sequence[int],
        past: torch.Tensor,
        bias: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The last hidden states, and the cache with the new tokens at its end.

        Args:
            token_ids: The new tokens.
            positions: Their positions.
            past: The cache, may be empty.
            bias: What is added to the logits of attention, [new tokens, all tokens].
        """
        cache = to_cache(past[None])
        output = self.model.model(
            input_ids=torch.tensor([token_ids]),
            position_ids=torch.tensor([positions]),
            past_key_values=cache,
            attention_mask=bias[None, None].to(self.model.dtype),
        )
        layers = [torch.cat((layer.keys, layer.values)) for layer in cache.layers]
        return output.last_hidden_state[0], torch.stack(layers)

    def encode(self, token_ids: Sequence[int], past: torch.Tensor | None = None) -> torch.Tensor:
        """The cache of tokens that stand right behind the past, without the past's own."""
        past = self.empty() if past is None else past
        num_past = past.shape[-2]
        keys = torch.arange(num_past + len(token_ids))
        bias = visible(keys[num_past:], keys)
        _, cache = self.forward(token_ids, keys[num_past:].tolist(), past, bias)
        return cache[..., num_past:, :]

    def encode_prefix(self, token_ids: Sequence[int]) -> torch.Tensor:
        """The cache of what modules are encoded behind, which is kept."""
        key = tuple(token_ids)
        if key not in self._prefixes:
            self._prefixes[key] = self.encode(token_ids) if token_ids else self.empty()
        return self._prefixes[key]

    def moved(self, cache: torch.Tensor, distance: int) -> torch.Tensor:
        """The cache of tokens as it were so many positions further on."""
        keys, values = cache.unbind(1)
        cos, sin = self.model.model.rotary_emb(keys, torch.tensor([[distance]]))
        return torch.stack((keys * cos + rotate_half(keys) * sin, values), dim=1)

    def empty(self) -> torch.Tensor:
        """A cache without tokens."""
        config = self.model.config
        dim = config.hidden_size // config.num_attention_heads
        shape = (config.num_hidden_layers, 2, config.num_key_value_heads, 0, dim)
        return torch.empty(shape, dtype=self.model.dtype)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """The logits of the next token in full precision."""
        return self.model.lm_head(hidden).float()

    def generate(
        self, first: torch.Tensor, past: torch.Tensor, bias: torch.Tensor, max_tokens: int
    ) -> torch.Tensor:
        """Greedy tokens for a batch of caches of the same length, until all have stopped.

        Args:
            first: Logits of the first token, [batch, vocabulary].
            past: The caches.
            bias: What is added to the logits of attention to the caches' tokens, [batch, token].
            max_tokens: Tokens that an answer may have.

        Returns:
            Of shape [batch, token]; what follows a stop means nothing.
        """
        cache = to_cache(past)
        answers = [first.argmax(-1)]
        is_done = answers[0] == self.stop
        while len(answers) < max_tokens and not is_done.all():
            bias = torch.nn.functional.pad(bias, (0, 1))
            answers.append(self._next(answers[-1], cache, bias))
            is_done |= answers[-1] == self.stop
        return torch.stack(answers, dim=1)

    def texts(self, answers: torch.Tensor) -> list[str]:
        """Generated tokens as text, up to the stop."""
        texts = self.tokenizer.batch_decode(answers)
        return [text.partition(STOP)[0].strip() for text in texts]

    def _next(self, last: torch.Tensor, cache: DynamicCache, bias: torch.Tensor) -> torch.Tensor:
        """The likeliest tokens after the last ones, which are added to the cache."""
        position = bias.shape[-1] - 1
        hidden = self.model.model(
            input_ids=last[:, None],
            position_ids=torch.full((len(last), 1), position),
            past_key_values=cache,
            attention_mask=bias[:, None, None].to(self.model.dtype),
        ).last_hidden_state
        return self.logits(hidden[:, -1]).argmax(-1)


def to_cache(past: torch.Tensor) -> DynamicCache:
    """A cache of the library from a batch of tensors."""
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(past.permute(1, 2, 0, 3, 4, 5)):
        cache.update(keys, values, layer)
    return cache
