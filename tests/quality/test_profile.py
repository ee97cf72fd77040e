"""Profiles as files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.quality.profiles import measured, profile, write
from vllm_promptcache.config import CONFIG_KEY, PromptModulesConfig
from vllm_promptcache.errors import ClientError, UnsupportedError
from vllm_promptcache.policies import Policy
from vllm_promptcache.quality.load_profile import config_sha256, load_profile, read_profile


def changed(**fields: Any) -> str:
    """A profile as JSON, with other fields."""
    return json.dumps(profile().model_dump() | fields)


def test_a_profile_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = write(tmp_path / "p.json", profile().model_dump_json(indent=2))
    assert read_profile(path) == profile()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot read the profile .*p.json: Expecting"),
        ("[]", "p.json is no profile: Input should be a valid dictionary"),
        (changed(version=1), "p.json has version 1, this release reads 2"),
        (changed(num_rows=0), "p.json is no profile: num_rows: "),
        (changed(colour="red"), "p.json is no profile: colour: "),
        (changed(default="fast"), "p.json is no profile: default: .*'fast' is no policy"),
        (changed(default="isolated"), "`default` must be a policy that passes, or `exact`"),
    ],
)
def test_what_is_no_profile_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ClientError, match=message):
        read_profile(write(tmp_path / "p.json", text))


def test_a_missing_profile_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ClientError, match=r"cannot read the profile .*: No such file"):
        read_profile(tmp_path / "none.json")


def test_policies_have_one_name_each() -> None:
    spelled = profile(measured=(measured("isolated+none"),), default="isolated")
    isolated = Policy("isolated")
    assert spelled.measured[0].policy == spelled.passed[0] == isolated
    assert spelled.find(isolated) is spelled.measured[0]
    assert spelled.find(Policy("anchored")) is None
    assert spelled.model_dump()["measured"][0]["policy"] == "isolated"


def engine(model: Path, **options: Any) -> Any:
    """The configuration of an engine."""
    model_config = SimpleNamespace(model=str(model), hf_config_path=None, revision=None)
    return SimpleNamespace(
        model_config=model_config, additional_config={CONFIG_KEY: options}, cache_config=None
    )


def test_a_profile_is_that_of_the_engines_model(tmp_path: Path) -> None:
    write(tmp_path / "config.json", "{}")
    digest = hashlib.sha256(b"{}").hexdigest()
    assert config_sha256(str(tmp_path)) == digest
    path = write(tmp_path / "p.json", changed(model={"name": "mine", "config_sha256": digest}))
    found = load_profile(engine(tmp_path, profile=str(path)))
    assert found is not None
    assert found.model.config_sha256 == digest
    assert load_profile(engine(tmp_path)) is None


def test_the_profile_of_another_model_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "config.json", "{}")
    path = write(tmp_path / "p.json", changed())
    with pytest.raises(ClientError) as caught:
        load_profile(engine(tmp_path, profile=str(path)))
    assert f"the profile {path} is of model mine (SHA-256" in caught.value.message
    assert f"the engine has {tmp_path} (44136fa355b3)" in caught.value.message


def test_a_model_without_config_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ClientError, match=r"cannot find config\.json of model"):
        config_sha256(str(tmp_path))


def test_a_profile_stands_for_encode_and_repair() -> None:
    default = PromptModulesConfig().repair
    assert PromptModulesConfig.parse({"profile": "p.json", "repair": default}).profile == "p.json"
    for option in ({"encode": "isolated"}, {"repair": "head:16"}):
        with pytest.raises(UnsupportedError, match=r"'profile': .*so leave these out"):
            PromptModulesConfig.parse({"profile": "p.json", **option})
