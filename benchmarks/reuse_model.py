"""The model of the reuse study, with caches as tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer, DynamicCache

from benchmarks.reuse_attention import GroupedAttention, visible
from benchmarks.reuse_prompt import NEUTRAL, STOP, Prompt, tokenize
from vllm_promptcache.layout.primer_form import made_up

NUM_SINK_TOKENS = 4


class Reader:
    """A model with its tokenizer, and caches as tensors of [layer, key or value, head, token, dim].

    One tensor, because choosing tokens of a cache is then indexing its fourth dimension.
    """

    def __init__(self, folder: str, dtype: torch.dtype = torch.bfloat16) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        self.attention = GroupedAttention()
        AttentionInterface.register("grouped", self.attention)
        self.model.set_attn_implementation("grouped")
        self.neutral = tokenize(self.tokenizer, NEUTRAL)
        self.primer = [tokenize(self.tokenizer, sentence) for sentence in made_up(None)]

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

    def encode(
        self,
        prompt: Prompt,
        module: range,
        prefix: Sequence[int] = (),
        positions: Sequence[int] = (),
    ) -> torch.Tensor:
        """The cache of a module that sees a prefix at these positions, without the prefix's own."""
        token_ids = [*prefix, *prompt.token_ids[module.start : module.stop]]
        order = torch.arange(len(token_ids))
        bias = visible(order, order)
        _, cache = self.forward(token_ids, [*positions, *module], self.empty(), bias)
        return cache[..., len(prefix) :, :]

    def encode_modules(self, prompt: Prompt, base: str) -> torch.Tensor:
        """The cache of root and modules in the order of the prompt."""
        if base == "plain":
            return self.encode(prompt, range(prompt.num_reused))
        caches = [self.encode(prompt, range(prompt.num_root))]
        for module in prompt.modules:
            caches.append(self.encode(prompt, module, *self._prefix(prompt, module, base)))
        return torch.cat(caches, dim=-2)

    def _prefix(self, prompt: Prompt, module: range, base: str) -> tuple[list[int], range]:
        """What a module sees before itself, and the positions of that."""
        if base == "neutral":
            # Only distances count for the rotation: the first one's may begin below zero.
            return self.neutral, range(module.start - len(self.neutral), module.start)
        if base == "primed":
            primed = prompt.token_ids[: prompt.num_root]
            for sentence in self.primer:
                if len(primed) + len(sentence) > module.start:
                    break
                primed = primed + sentence
            return primed, range(len(primed))
        num_seen = {"isolated": 0, "anchored": prompt.num_root, "sink": NUM_SINK_TOKENS}[base]
        return prompt.token_ids[:num_seen], range(num_seen)

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
    ) -> list[str]:
        """Greedy answers for a batch of caches of the same length.

        Args:
            first: Logits of the first token, [batch, vocabulary].
            past: The caches.
            bias: What is added to the logits of attention to the caches' tokens, [batch, token].
            max_tokens: Tokens that an answer may have.
        """
        cache = to_cache(past)
        stop = self.tokenizer.convert_tokens_to_ids(STOP)
        answers = [first.argmax(-1)]
        is_done = answers[0] == stop
        while len(answers) < max_tokens and not is_done.all():
            bias = torch.nn.functional.pad(bias, (0, 1))
            answers.append(self._next(answers[-1], cache, bias))
            is_done |= answers[-1] == stop
        texts = self.tokenizer.batch_decode(torch.stack(answers, dim=1))
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
