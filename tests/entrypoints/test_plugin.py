"""Options and hooks, without an engine."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

import pytest
from vllm.engine.arg_utils import AsyncEngineArgs, EngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser

from vllm_promptcache.config import CONFIG_KEY, PromptModulesConfig
from vllm_promptcache.errors import PlanError, UnsupportedError
from vllm_promptcache.plugin import register


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    register()


def parse(*options: str) -> argparse.Namespace:
    parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())
    return parser.parse_args(["--model", ".", *options])


def engine_args(*options: str) -> EngineArgs:
    return AsyncEngineArgs.from_cli_args(parse(*options))


def test_options_reach_the_engine_configuration():
    args = engine_args(
        "--enable-prompt-modules", "--prompt-schemas", "here", "--prompt-modules-encode", "isolated"
    )
    assert args.additional_config == {CONFIG_KEY: {"schemas": "here", "encode": "isolated"}}
    args = engine_args("--enable-prompt-modules", "--prompt-modules-profile", "mine.json")
    assert args.additional_config == {CONFIG_KEY: {"profile": "mine.json"}}
    assert PromptModulesConfig.parse(args.additional_config[CONFIG_KEY]).verify is False


def test_without_the_flag_nothing_changes():
    assert CONFIG_KEY not in (engine_args().additional_config or {})


def test_an_additional_config_of_the_user_is_kept():
    args = engine_args("--enable-prompt-modules", "--additional-config", '{"mine": 1}')
    assert args.additional_config == {"mine": 1, CONFIG_KEY: {}}


def test_the_flag_shows_cached_tokens_in_the_usage():
    args = parse("--enable-prompt-modules")
    AsyncEngineArgs.from_cli_args(args)
    assert args.enable_prompt_tokens_details is True


def test_an_option_without_the_flag_is_refused():
    with pytest.raises(UnsupportedError, match="--prompt-modules-verify has no effect"):
        engine_args("--prompt-modules-verify")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"shemas": "x"},
            "'shemas'.*\nhint: options are: schemas, schemas_read_only, encode, repair, profile",
        ),
        (
            {"encode": "all"},
            "'encode': Input should be 'isolated', 'anchored', 'primed' or",
        ),
        ({"repair": "head"}, "'repair': .*write `none`, `head:N`"),
        ({"verify": "maybe"}, "'verify'"),
        ("on", "prompt_modules option"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(UnsupportedError, match=message):
        PromptModulesConfig.parse(options)


def test_registering_twice_hooks_once():
    hooked = EngineArgs.create_engine_config
    register()
    assert EngineArgs.create_engine_config is hooked
    assert sum(a.dest == "prompt_schemas" for a in actions()) == 1


def test_registering_imports_nothing_that_only_engines_with_modules_need():
    """vLLM calls it in every process."""
    code = (
        "import json, sys\n"
        "import vllm.engine.arg_utils, vllm.renderers.registry\n"
        "before = {*sys.modules}\n"
        "import vllm_promptcache.plugin\n"
        "vllm_promptcache.plugin.register()\n"
        "print(json.dumps(sorted(sys.modules.keys() - before)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = json.loads(done.stdout.splitlines()[-1])
    ours = {name.removeprefix("vllm_promptcache.") for name in names}
    light = {"compat", "compat.wrap", "config", "errors", "plugin", "policies"}
    assert ours == {"vllm_promptcache", *light}


def actions() -> list[argparse.Action]:
    return AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())._actions


def test_our_errors_end_a_command_without_traceback(capsys):
    EngineArgs.from_cli_args(parse("--enable-prompt-modules"))
    sys.excepthook(PlanError, PlanError("what", "how"), None)
    assert capsys.readouterr().err == "error: what\nhint: how\n"
    error = ValueError("other")
    sys.excepthook(ValueError, error, None)
    assert "ValueError: other" in capsys.readouterr().err
