"""The plugin's entry point: options on the command line, and hooks where they are on.

vLLM calls `register` in every process and for every sub-command, so it only wraps four functions
that start an engine or its front end; the rest is imported when an engine has prompt modules on.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any

from vllm_promptcache.compat.wrap import wrap
from vllm_promptcache.config import ADMIN_KEY_VARIABLE, CONFIG_KEY, PromptModulesConfig
from vllm_promptcache.errors import PromptCacheError, UnsupportedError

_ENABLE = "enable_prompt_modules"
# Option on the command line (as a name in the parsed arguments) -> field of the config.
_OPTIONS = {
    "prompt_schemas": "schemas",
    "prompt_schemas_read_only": "schemas_read_only",
    "prompt_schemas_max_count": "max_schemas",
    "prompt_schemas_max_size": "max_schemas_size",
    "prompt_modules_encode": "encode",
    "prompt_modules_repair": "repair",
    "prompt_modules_profile": "profile",
    "prompt_modules_primer": "primer",
    "prompt_modules_max_pinned_share": "max_pinned_share",
    "prompt_modules_eviction": "eviction",
    "prompt_modules_host_memory": "host_memory",
    "prompt_modules_dir": "dir",
    "prompt_modules_dir_size": "dir_size",
    "prompt_modules_cold": "cold",
    "prompt_modules_encode_after": "encode_after",
    "prompt_modules_promote_after": "promote_after",
    "prompt_modules_max_promoted_share": "max_promoted_share",
    "prompt_modules_prefetch": "prefetch",
    "prompt_modules_shadow": "shadow",
    "prompt_modules_from": "prompts_from",
    "prompt_modules_verify": "verify",
}
_METAVARS = {
    "schemas": "DIR",
    "dir": "DIR",
    "encode_after": "N",
    "dir_size": "GIB",
    "host_memory": "GIB",
    "max_schemas": "N",
    "max_schemas_size": "GIB",
    "max_pinned_share": "SHARE",
    "profile": "FILE",
    "primer": "FILE",
    "max_promoted_share": "SHARE",
    "promote_after": "N",
    "repair": "REPAIR",
    "shadow": "SHARE",
}


def register() -> None:
    """Entry point of the group `vllm.general_plugins`. Idempotent; inert without the flag."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.renderers.registry import RENDERER_REGISTRY

    wrap(EngineArgs, "add_cli_args", _add_cli_args)
    wrap(EngineArgs, "from_cli_args", _from_cli_args)
    wrap(EngineArgs, "create_engine_config", _create_engine_config)
    wrap(RENDERER_REGISTRY, "load_renderer", _load_renderer)


def _add_cli_args(original: Callable[..., Any], parser: Any) -> Any:
    from vllm.engine.arg_utils import get_kwargs

    parser = original(parser)
    group = parser.add_argument_group("PromptModulesConfig", PromptModulesConfig.__doc__)
    group.add_argument(
        "--enable-prompt-modules",
        action="store_true",
        help="Serve prompts written in PML and reuse the KV of the modules they import. Prompts "
        "that are not PML are served as ever.",
    )
    kwargs = get_kwargs(PromptModulesConfig)
    for name, metavar in _METAVARS.items():
        kwargs[name]["metavar"] = metavar
    for option, field in _OPTIONS.items():
        group.add_argument(f"--{option.replace('_', '-')}", **kwargs[field])
    group.add_argument(
        "--prompt-schemas-admin-key",
        metavar="KEY",
        help="What clients must send in the header X-Prompt-Schemas-Admin-Key to change schemas, "
        f"beside the API key. Better given in the environment variable {ADMIN_KEY_VARIABLE}.",
    )
    return parser


def _from_cli_args(original: Callable[..., Any], cls: type, args: argparse.Namespace) -> Any:
    defaults = PromptModulesConfig()
    options = {
        field: value
        for option, field in _OPTIONS.items()
        if (value := getattr(args, option, None)) not in (None, getattr(defaults, field))
    }
    wrap(sys, "excepthook", _report_error)
    if getattr(args, _ENABLE, False):
        args.additional_config = {**(args.additional_config or {}), CONFIG_KEY: options}
        # The share of cached tokens is what users of prompt modules look at in `usage`.
        args.enable_prompt_tokens_details = True
        if key := getattr(args, "prompt_schemas_admin_key", None):
            os.environ[ADMIN_KEY_VARIABLE] = key
    elif options:
        option = next(option for option, field in _OPTIONS.items() if field in options)
        raise UnsupportedError(
            f"--{option.replace('_', '-')} has no effect while prompt modules are off",
            "add --enable-prompt-modules",
        )
    return original(cls, args)


def _report_error(original: Callable[..., Any], kind: type, error: Any, trace: Any) -> None:
    """Ends a command with our message alone: what users can mend needs no traceback."""
    if issubclass(kind, PromptCacheError):
        print(f"error: {error}", file=sys.stderr)
    else:
        original(kind, error, trace)


def _create_engine_config(
    original: Callable[..., Any], args: Any, *rest: Any, **kwargs: Any
) -> Any:
    if CONFIG_KEY not in (args.additional_config or {}):
        return original(args, *rest, **kwargs)
    from vllm import plugins

    from vllm_promptcache.engine import (
        check_engine,
        compose_connectors,
        prepare_engine_args,
        select_scheduler,
        warn_of_emulation,
    )

    PromptModulesConfig.parse(args.additional_config[CONFIG_KEY])
    prepare_engine_args(args)
    vllm_config = original(args, *rest, **kwargs)
    check_engine(vllm_config)
    warn_of_emulation(vllm_config)
    select_scheduler(vllm_config)
    compose_connectors(vllm_config)
    wrap(plugins, "load_endpoint_plugins", _load_endpoint_plugins)
    return vllm_config


def _load_endpoint_plugins(original: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
    """Adds our routes where prompt modules are on, whatever VLLM_PLUGINS says."""
    from vllm_promptcache.entrypoints.schema_routes import SchemaEndpoints

    return [*original(*args, **kwargs), SchemaEndpoints()]


def _load_renderer(
    original: Callable[..., Any], renderer_mode: str, config: Any, tokenizer: Any
) -> Any:
    if PromptModulesConfig.find(config) is None:
        return original(renderer_mode, config, tokenizer)
    from vllm_promptcache.entrypoints.renderer import make_renderer

    return make_renderer(renderer_mode, config, tokenizer)
