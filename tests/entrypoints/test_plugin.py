"""Options and hooks, without an engine."""

from __future__ import annotations

import argparse
import sys
from types import SimpleNamespace

import pytest
from vllm.engine.arg_utils import AsyncEngineArgs, EngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser

from vllm_promptcache import compat
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


def actions() -> list[argparse.Action]:
    return AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())._actions


def test_this_vllm_has_all_private_names():
    compat.check_private_names()


def test_a_missing_private_name_is_listed_with_the_version(monkeypatch):
    names = {"vllm.v1.request": ("Request.gone",), "vllm.no_such_module": ("x",)}
    monkeypatch.setattr(compat, "PRIVATE_NAMES", names)
    with pytest.raises(UnsupportedError) as error:
        compat.check_private_names()
    assert "vllm.v1.request.Request.gone, vllm.no_such_module.x" in str(error.value)
    assert "0.32" in str(error.value)


def test_wrap_keeps_kinds_of_methods_and_wraps_once():
    class Owner:
        @staticmethod
        def static(x):
            return x

        @classmethod
        def of_class(cls, x):
            return cls, x

        def plain(self, x):
            return self, x

    def double(original, *args):
        result = original(*args)
        return (result, result)

    for name in ("static", "of_class", "plain"):
        compat.wrap(Owner, name, double)
        compat.wrap(Owner, name, double)
    owner = Owner()
    assert Owner.static(1) == owner.static(1) == (1, 1)
    assert Owner.of_class(1) == ((Owner, 1), (Owner, 1))
    assert owner.plain(1) == ((owner, 1), (owner, 1))


def test_blocks_of_modular_requests_are_not_cached():
    cached = []
    coordinator = SimpleNamespace(cache_blocks=lambda request, n: cached.append(request.request_id))
    manager = SimpleNamespace(coordinator=coordinator)
    compat.choose_published_blocks(manager, lambda request, n: request.request_id == "plain")
    for request_id in ("plain", "modular"):
        coordinator.cache_blocks(SimpleNamespace(request_id=request_id), 64)
    assert cached == ["plain"]


def test_our_errors_end_a_command_without_traceback(capsys):
    EngineArgs.from_cli_args(parse("--enable-prompt-modules"))
    sys.excepthook(PlanError, PlanError("what", "how"), None)
    assert capsys.readouterr().err == "error: what\nhint: how\n"
    error = ValueError("other")
    sys.excepthook(ValueError, error, None)
    assert "ValueError: other" in capsys.readouterr().err
