"""vLLM's API server in a process of ours: its arguments, its engine and its app, without a port."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fastapi import FastAPI


def serve_arguments(options: Sequence[str]) -> Namespace:
    """Parses what could stand behind `vllm serve`.

    Raises:
        SystemExit: It is not valid; what is wrong was printed.
        ValueError: Options contradict each other.
    """
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.plugins import load_general_plugins
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    # They add options.
    load_general_plugins()
    args = make_arg_parser(FlexibleArgumentParser(prog="vllm serve")).parse_args(list(options))
    if args.model_tag is not None:
        args.model = args.model_tag
    validate_parsed_serve_args(args)
    return args


@asynccontextmanager
async def api_server(args: Namespace) -> AsyncIterator[FastAPI]:
    """Starts an engine, and yields the app that answers for it; ends both.

    Args:
        args: Of `serve_arguments`.
    """
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.api_server.entry import build_async_engine_client
    from vllm.entrypoints.launchers.app import build_app
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    if args.tool_parser_plugin:
        ToolParserManager.import_tool_parser(args.tool_parser_plugin)
    if args.reasoning_parser_plugin:
        ReasoningParserManager.import_reasoning_parser(args.reasoning_parser_plugin)
    async with build_async_engine_client(args) as engine:
        tasks = await engine.get_supported_tasks()
        app = build_app(args, tasks, engine.model_config)
        await init_app_state(engine, app.state, args, tasks)
        async with app.router.lifespan_context(app):
            yield app
