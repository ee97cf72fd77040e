"""Tiny models with random weights, one per family of positions and attention.

Each has two layers and the tokenizer built here, so that a folder is written in well under a second
and all log-probabilities of a step can be compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.generators.words import WORDS

MAX_POSITIONS = 2048
HIDDEN_SIZE = 128
NUM_HEADS = 2
# Large enough that a wrong position or a missing token moves the logits by far more than rounding
# does, small enough that rounding in float32 stays under 1e-4.
INITIALIZER_RANGE = 0.1
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Family:
    """A tiny model, and what is peculiar about it.

    Attributes:
        name: What tests call it.
        make_config: Builds its configuration from the arguments all families share.
        refused_because: What the engine's refusal must say; None where the family is supported.
    """

    name: str
    make_config: Callable[..., hf.PreTrainedConfig]
    refused_because: str | None = None

    def save(self, folder: Path) -> Path:
        """Writes model and tokenizer into `folder` and returns it."""
        tokenizer = build_tokenizer()
        config = self.make_config(
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        torch.manual_seed(0)
        model = hf.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder


@lru_cache(maxsize=1)
def build_tokenizer() -> hf.PreTrainedTokenizerFast:
    """Returns a byte-level BPE tokenizer whose tokens are the generators' words."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,  # more than there are merges: every word becomes one token
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([" " + " ".join(WORDS), "system user assistant"], trainer)
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        model_max_length=MAX_POSITIONS,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _decoder(config: type[hf.PreTrainedConfig], **own: Any) -> Callable[..., hf.PreTrainedConfig]:
    """Returns a maker of configurations with the names that most decoders agree upon."""

    def make(**shared: Any) -> hf.PreTrainedConfig:
        sizes = {
            "hidden_size": HIDDEN_SIZE,
            "intermediate_size": 2 * HIDDEN_SIZE,
            "num_hidden_layers": 2,
            "num_attention_heads": NUM_HEADS,
            "max_position_embeddings": MAX_POSITIONS,
            "initializer_range": INITIALIZER_RANGE,
        }
        # Grouped queries where the family has them; told of it, the others would believe it too.
        if hasattr(config, "num_key_value_heads"):
            sizes["num_key_value_heads"] = 1
        return config(**{**shared, **sizes, **own})

    return make


# The original context is shorter than the tests' prompts, so that the scaling matters to them.
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}

YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 256,
}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
LLAMA = Family("llama", _decoder(hf.LlamaConfig))
SUPPORTED = (
    Family("llama3-rope", _decoder(hf.LlamaConfig, rope_parameters=LLAMA3_ROPE)),
    Family("llama-yarn", _decoder(hf.LlamaConfig, rope_parameters=YARN_ROPE)),
    Family("llama-linear", _decoder(hf.LlamaConfig, rope_parameters=LINEAR_ROPE)),
    Family("qwen2", _decoder(hf.Qwen2Config)),
    Family("qwen3", _decoder(hf.Qwen3Config, head_dim=64)),
    Family("mistral", _decoder(hf.MistralConfig, sliding_window=None)),
    Family(
        "gpt-neox",
        _decoder(
            hf.GPTNeoXConfig,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.25,
            },
        ),
    ),
    Family("phi3", _decoder(hf.Phi3Config)),
    Family(
        "opt",
        _decoder(
            hf.OPTConfig,
            ffn_dim=2 * HIDDEN_SIZE,
            word_embed_proj_dim=HIDDEN_SIZE,
            init_std=INITIALIZER_RANGE,
        ),
    ),
)
REFUSED = (
    Family("alibi", _decoder(hf.BloomConfig, n_layer=2, n_head=NUM_HEADS), "ALiBi"),
    Family("sliding-window", _decoder(hf.MistralConfig, sliding_window=64), "sliding-window"),
    Family(
        "sliding-window-in-some-layers",
        _decoder(
            hf.Gemma3TextConfig,
            head_dim=64,
            sliding_window=64,
            layer_types=["sliding_attention", "full_attention"],
        ),
        "sliding-window",
    ),
    Family("mamba", _decoder(hf.MambaConfig, state_size=16), "Mamba"),
)
