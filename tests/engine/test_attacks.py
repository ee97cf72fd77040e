"""What hostile clients get from a live server: refusals that cost little, and nobody's secrets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

from tests.engine.attacks import Attacker, report_slowest, report_tenants
from tests.engine.server import MODEL_NAME, running_server
from tests.engine.test_server import NOTES, SCHEMA

OPTIONS = ["--api-key=secret", "--prompt-schemas-admin-key=admin"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("schemas")
    (folder / "travel.pml").write_text(SCHEMA)
    (folder / "notes.pml").write_text(NOTES)
    return folder


@pytest.fixture(scope="module")
def attacker(smollm2: Path, folder: Path) -> Iterator[Attacker]:
    with running_server(smollm2, folder, *OPTIONS) as url:
        yield Attacker(url, MODEL_NAME, "secret", "admin")


def test_attacks_are_refused_and_cost_little(
    attacker: Attacker, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = list(attacker.table())
    with capsys.disabled():
        print("".join(f"\n{result}" for result in results))
        print(report_slowest(results))
    log = (folder / "server.log").read_text(errors="replace")
    assert not [str(result) for result in results if not result.is_right]
    assert not [str(result) for result in results if not result.is_cheap]
    assert "Traceback" not in log
    assert {path.name for path in folder.glob("*.pml")} == {"travel.pml", "notes.pml"}


def test_tenants_see_nothing_of_each_other(
    attacker: Attacker, capsys: pytest.CaptureFixture[str]
) -> None:
    found = attacker.tenants()
    with capsys.disabled():
        print("".join(f"\n{line}" for line in report_tenants(found)))
    counts = {who: {count for count, _ in seen} for who, seen in found.items()}
    assert counts.pop("same") != {0}
    assert all(count == {0} for count in counts.values())
    seconds = {who: median(seconds for _, seconds in seen) for who, seen in found.items()}
    # Whoever is warm answers several times as fast; noise on a shared machine is less than that.
    assert seconds["same"] < seconds["cold"] / 2
    assert 1 / 2 < seconds["other"] / seconds["cold"] < 2


def test_control_tokens_in_a_text_are_read_as_vllm_reads_them(
    attacker: Attacker, capsys: pytest.CaptureFixture[str]
) -> None:
    found = attacker.control_tokens()
    with capsys.disabled():
        print("".join(f"\ncontrol tokens: {where:18} {num}" for where, num in found.items()))
    assert found["PML, free text"] == found["vLLM, chat"]
