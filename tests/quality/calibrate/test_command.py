"""The command `quality.calibrate`: what it refuses, and a run on the embedded model."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_promptcache.policies import EXACT, Policy
from vllm_promptcache.quality.calibrate import __main__ as command
from vllm_promptcache.quality.evaluate import run
from vllm_promptcache.quality.load_profile import config_sha256, read_profile

POLICIES = "isolated,anchored+head:16"
SCHEMA = """<schema name="trips" encode="isolated" pin="true"><user>
  <module name="oban">The ferry to Arran leaves Oban at nine, every day but Sunday.</module>
  <module name="arran">On Arran there is a bakery that opens when the ferry comes.</module>
</user></schema>"""
PROMPT = '<prompt schema="trips"><oban/><arran/><user>When does the bakery open?</user></prompt>'


@pytest.mark.parametrize(
    ("others", "message"),
    [
        (
            ["--policies", "isolated,exact"],
            "'exact' is no candidate; name isolated, anchored",
        ),
        (["--data", "none.jsonl"], "cannot read none.jsonl: No such file or directory"),
        (["--output", "."], ". is a folder, not a file to write"),
        ([], "cannot find config.json of model"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], others: list[str], message: str
) -> None:
    given = ["--model", str(tmp_path), "--output", str(tmp_path / "p.json"), *others]
    assert command.main(given) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("limit", ["-1", "nan", "inf", "much"])
def test_limits_are_numbers(tmp_path: Path, limit: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command.main(["--model", "none", "--output", "p.json", "--tolerance", limit])
    assert caught.value.code == 2
    assert "argument --tolerance: " in capsys.readouterr().err


@pytest.mark.engine
def test_a_schema_that_fails_its_gate_is_served_exactly(
    shallow: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "profile.json"
    given = ["--model", str(shallow), "--output", str(path), "--dtype", "float32", "--limit", "3"]
    given += ["--policies", POLICIES, "--max-tokens", "4", "--kv-cache-memory", "0.25"]
    given += ["--max-model-len", "1024"]
    # No score is lost beyond 100 points, and no policy but `exact` has a KL of 0.
    assert command.main([*given, "--tolerance", "100", "--max-kl", "0"]) == 0
    assert "Chosen: exact, since no candidate passes." in capsys.readouterr().out
    profile = read_profile(path)
    assert [str(measured.policy) for measured in profile.measured] == POLICIES.split(",")
    assert all(measured.kl > 0 for measured in profile.measured)
    assert (profile.num_rows, profile.passed, profile.default) == (3, [], EXACT)
    assert profile.model.config_sha256 == config_sha256(str(shallow))
    serve(shallow, path)
    # Other limits need no other run.
    monkeypatch.setattr(run, "running_engine", None)
    assert command.main([*given, "--tolerance", "100", "--max-kl", "100"]) == 0
    assert "Chosen: isolated, the cheapest that passes." in capsys.readouterr().out
    assert read_profile(path).default == Policy("isolated")


def serve(model: Path, profile: Path) -> None:
    """Checks an engine with a profile that lets no approximation pass."""
    from vllm_promptcache import LLM, SamplingParams

    llm = LLM(
        model,
        dtype="float32",
        prompt_modules={"profile": str(profile)},
        max_model_len=512,
        enforce_eager=True,
        kv_cache_memory_bytes=2**26,
    )
    info = llm.add_schema(SCHEMA)
    assert info.policy == "exact"
    assert info.reason is not None
    assert info.reason.startswith("policy isolated lost ")
    assert llm.explain(PROMPT).modules[-1].policy == "exact"
    params = SamplingParams(max_tokens=8, temperature=0)
    _, again, plain = (llm.generate(PROMPT, params, reuse=r)[0] for r in (True, True, False))
    assert again.num_cached_tokens > 0
    assert again.outputs[0].text == plain.outputs[0].text != ""
    llm.llm_engine.engine_core.shutdown()
