"""Made-up profiles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vllm_promptcache.policies import Policy
from vllm_promptcache.quality.profile import Measured, Profile, ProfiledModel


def named(name: str) -> Policy:
    policy = Policy.parse(name)
    assert policy is not None
    return policy


def measured(policy: str, loss: float = 0.0, kl: float = 0.0, share: float = 0.0) -> Measured:
    return Measured(policy=named(policy), loss=loss, kl=kl, recomputed_share=share)


def profile(**fields: Any) -> Profile:
    """`anchored` has passed, `isolated` has not."""
    defaults = {
        "model": ProfiledModel(name="mine", config_sha256="ab" * 32),
        "tolerance": 1.0,
        "max_kl": 0.05,
        "num_rows": 24,
        "measured": (measured("isolated", 3.25, 0.125), measured("anchored", 0.5, 0.01)),
        "passed": ("anchored",),
        "default": "anchored",
    }
    return Profile(**(defaults | fields))


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path
