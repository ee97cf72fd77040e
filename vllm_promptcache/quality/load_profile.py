"""Reads profiles, and checks that an engine is given that of its model."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from vllm_promptcache.config import PromptModulesConfig
from vllm_promptcache.errors import ClientError
from vllm_promptcache.quality.profile import VERSION, Profile, ProfiledModel

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


def read_profile(path: Path) -> Profile:
    """Reads a profile.

    Raises:
        ClientError: It cannot be read, is no profile, or has another version.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ClientError(f"cannot read the profile {path}: {reason}") from error
    _check_version(path, content)
    try:
        return Profile.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        message = f"{path} is no profile: {f'{field}: ' if field else ''}{first['msg']}"
        raise ClientError(message, "calibrate the model again") from error


def _check_version(path: Path, content: Any) -> None:
    version = content.get("version", VERSION) if isinstance(content, dict) else VERSION
    if version != VERSION:
        message = f"the profile {path} has version {version!r}, this release reads {VERSION}"
        raise ClientError(message, "calibrate the model again")


def config_sha256(model: str, revision: str | None = None) -> str:
    """SHA-256 of a model's `config.json`, in hex.

    Args:
        model: Its folder, or its name on the hub.
        revision: As for vLLM, of a model on the hub.

    Raises:
        ClientError: There is no such file.
    """
    # Importing it takes seconds.
    from transformers.utils import cached_file

    reason, path = "there is no such file", None
    try:
        # None where the hub may not be asked.
        path = cached_file(model, "config.json", revision=revision)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
    if path is None:
        raise ClientError(f"cannot find config.json of model {model}: {reason}")
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
