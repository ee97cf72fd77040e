"""Made-up profiles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vllm_promptcache.policies import Policy
from vllm_promptcache.quality.profile import Measured, Profile, ProfiledModel, VerdictName


def named(name: str) -> Policy:
    policy = Policy.parse(name)
    assert policy is not None
    return policy


def measured(policy: str, verdict: VerdictName = "passes", **fields: Any) -> Measured:
    defaults = {"loss": 0.0, "kl": 0.0, "recomputed_share": 0.0}
    return Measured(policy=named(policy), verdict=verdict, **(defaults | fields))


def profile(**fields: Any) -> Profile:
    """`anchored` has passed, `isolated` has not."""
    defaults = {
        "model": ProfiledModel(name="mine", config_sha256="ab" * 32),
        "tolerance": 1.0,
        "max_kl": 0.05,
        "num_rows": 24,
        "measured": (
            measured("isolated", "fails", loss=3.25, kl=0.125),
            measured("anchored", loss=0.5, kl=0.01),
        ),
        "default": "anchored",
    }
    return Profile(**(defaults | fields))


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path
