"""The profile that an engine is given."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vllm_promptcache.config import PromptModulesConfig
from vllm_promptcache.profile import Profile, ProfiledModel, config_sha256, read_profile

if TYPE_CHECKING:
    from vllm.config import VllmConfig


def load_profile(vllm_config: VllmConfig) -> Profile | None:
    """Reads the profile of an engine; None if it is given none.

    Raises:
        ClientError: It cannot be used, or is that of another model.
    """
    path = PromptModulesConfig.of(vllm_config).profile
    if path is None:
        return None
    model = vllm_config.model_config
    profile = read_profile(Path(path))
    digest = config_sha256(model.hf_config_path or model.model, model.revision)
    profile.check_model(path, ProfiledModel(name=model.model, config_sha256=digest))
    return profile
