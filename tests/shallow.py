"""The embedded model cut off after its first layers: real weights at a fraction of the cost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

NUM_LAYERS = 4
_WEIGHTS = "model.safetensors"


def save_shallow(model: Path, folder: Path) -> Path:
    """Writes `model` with its first `NUM_LAYERS` layers only into `folder` and returns it.

    Tokens, positions, attention and blocks are the same as in the whole model, and so is what a
    wrong one of them does to the log-probabilities; their values mean nothing.
    """
    shutil.copytree(model, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(_WEIGHTS))
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"] = NUM_LAYERS
    (folder / "config.json").write_text(json.dumps(config))
    with safe_open(model / _WEIGHTS, "pt") as whole:
        kept = {name: whole.get_tensor(name) for name in whole.keys() if _is_kept(name)}  # noqa: SIM118
        save_file(kept, folder / _WEIGHTS, whole.metadata())
    return folder


def _is_kept(name: str) -> bool:
    """Whether a tensor is outside of the layers, or in one of the first ones."""
    _, is_in_layer, rest = name.partition(".layers.")
    return not is_in_layer or int(rest.partition(".")[0]) < NUM_LAYERS
