"""`python -m vllm_promptcache.models`: a path on stdout, everything else on stderr."""

from pathlib import Path

import pytest

from tests.models.conftest import tiny_spec
from vllm_promptcache.models import __main__ as command
from vllm_promptcache.models import registry


@pytest.fixture
def built_tiny_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished model named `tiny` in the cache of this test."""
    monkeypatch.setenv("VLLM_PROMPTCACHE_HOME", str(tmp_path))
    monkeypatch.setattr(registry, "MODELS", {"tiny": tiny_spec()})
    folder = tmp_path / "models/tiny"
    folder.mkdir(parents=True)
    return folder


def test_prints_the_folder_and_nothing_else(
    built_tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["tiny"]) == 0
    assert capsys.readouterr() == (f"{built_tiny_model}\n", "")


def test_an_error_is_told_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["no-such-model"]) == 1

    stdout, stderr = capsys.readouterr()
    assert stdout == ""
    assert stderr.startswith("error: unknown embedded model 'no-such-model'\nhint: ")


def test_list_shows_names_and_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list"]) == 0
    assert "smollm2-135m         download  92.9 MB" in capsys.readouterr().out
