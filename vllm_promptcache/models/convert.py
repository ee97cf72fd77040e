"""Turn a GGUF file into a Hugging Face folder: `python convert.py GGUF OUTPUT`.

A program of its own, which imports nothing of this package: torch and transformers take gigabytes
while they convert and write to both output streams, which the calling process is spared.
"""

import sys
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GemmaTokenizer,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)


def convert_gguf(gguf: Path, output: Path) -> None:
    """Write weights (bfloat16), tokenizer and chat template of a GGUF file to a folder.

    Raises:
        ImportError, ValueError: A package is missing, or transformers cannot read the file.
    """
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    _mend_model(model, tokenizer)
    _mend_tokenizer(tokenizer, model)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


def _mend_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    # The weights are dense now; some versions of transformers still call them quantized.
    vars(model.config).pop("quantization_config", None)
    # Models of the Qwen family pad with the token that also ends a plain completion.
    if tokenizer.pad_token == "<|endoftext|>":
        stop_ids = [tokenizer.eos_token_id, tokenizer.pad_token_id]
        model.generation_config.eos_token_id = stop_ids


def _mend_tokenizer(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    # GGUF knows the model's length, and transformers does not hand it to the tokenizer.
    tokenizer.model_max_length = model.config.max_position_embeddings
    # transformers drops the automatic <bos> of Gemma's tokenizer when it reads GGUF.
    tokenizer.add_bos_token = isinstance(tokenizer, GemmaTokenizer)


if __name__ == "__main__":
    convert_gguf(Path(sys.argv[1]), Path(sys.argv[2]))
