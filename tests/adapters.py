"""Small LoRA adapters with random weights, and the models that they make of another one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

RANK = 8
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


def save_adapter(model: Path, folder: Path, seed: int) -> Path:
    """Writes an adapter of a model in PEFT's format into `folder`, over one that may be there."""
    folder.mkdir(exist_ok=True)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(model),
        "r": RANK,
        "lora_alpha": RANK,
        "target_modules": list(_PROJECTIONS),
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors = {
        f"base_model.model.{name}.lora_{part}.weight": factor
        for name, factors in _factors(model, seed).items()
        for part, factor in zip("AB", factors, strict=True)
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def save_merged(model: Path, folder: Path, seed: int) -> Path:
    """Writes the model that a model is with an adapter into `folder`, without a tokenizer."""
    merged = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        for name, (a, b) in _factors(model, seed).items():
            merged.get_submodule(name).weight += b @ a
    merged.save_pretrained(folder)
    return folder


def _factors(model: Path, seed: int) -> Mapping[str, tuple[torch.Tensor, torch.Tensor]]:
    """The two factors of what is added to each layer's weight, by the layer's name."""
    generator = torch.Generator().manual_seed(seed)
    layers = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).named_modules()
    return {
        name: (
            torch.randn(RANK, layer.in_features, generator=generator) / layer.in_features**0.5,
            torch.randn(layer.out_features, RANK, generator=generator),
        )
        for name, layer in layers
        if name.endswith(_PROJECTIONS)
    }
