"""The engine that answers."""

from __future__ import annotations

import gc
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm_promptcache.errors import ClientError, ModelError, UnsupportedError
from vllm_promptcache.models import MODELS, embedded_model
from vllm_promptcache.quality.evaluate.contenders import PLAIN, Contender
from vllm_promptcache.quality.evaluate.data import Row
from vllm_promptcache.quality.evaluate.prompts import Writer
from vllm_promptcache.quality.first_token import NUM_TOKENS

if TYPE_CHECKING:
    from vllm_promptcache import LLM

QUIET = {
    "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    # The engine in this process: its errors are seen here.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}
_PROBE = Row(id="probe", metric="f1", docs=("One.", "Two."), question="How many?", answers=("2",))


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How the engine is started.

    Attributes:
        model: Folder or name of a model, or the name of an embedded one.
        dtype: As for `vllm.LLM`.
        max_model_len: As for `vllm.LLM`; None for what the model has.
        kv_cache_bytes: Size of the KV cache.
    """

    model: str
    dtype: str
    max_model_len: int | None
    kv_cache_bytes: int


@contextmanager
def running_engine(options: EngineOptions) -> Iterator[LLM]:
    """Starts an engine, and takes it down again.

    Raises:
        ModelError: It does not start.
    """
    llm = _start(options)
    try:
        yield llm
    finally:
        shut_down(llm)


def shut_down(llm: LLM) -> None:
    """Ends an engine in this process, so that another one can be started."""
    from vllm.distributed import cleanup_dist_env_and_memory

    llm.llm_engine.engine_core.shutdown()
    gc.collect()
    cleanup_dist_env_and_memory()


def _start(options: EngineOptions) -> LLM:
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", category=FutureWarning)
    # vLLM's own logging is set up too late for what its first imports say.
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])
    # Importing vLLM takes seconds, and it reads the environment.
    from vllm_promptcache import LLM, SamplingParams

    model = str(embedded_model(options.model)) if options.model in MODELS else options.model
    try:
        llm = LLM(
            model,
            dtype=options.dtype,
            max_model_len=options.max_model_len,
            kv_cache_memory_bytes=options.kv_cache_bytes,
            # Each policy is to answer each row, not an exact prompt that the last one has left.
            prompt_modules={"promote_after": 0},
            enforce_eager=True,
            max_logprobs=NUM_TOKENS,
            disable_log_stats=False,
            use_tqdm_on_load=False,
        )
    # vLLM has no base class for what goes wrong at start.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"vLLM does not start with {options.model}: {reason}") from error
    # The first use of either parameter compiles something, which takes seconds.
    ids = list(range(NUM_TOKENS))
    for params in (SamplingParams(logprobs=NUM_TOKENS), SamplingParams(logprob_token_ids=ids)):
        llm.generate("The capital of France is", params, use_tqdm=False)
    return llm


def find_writer(llm: LLM) -> Writer:
    """Tells whether prompts can have roles. Adds a schema, and removes it."""
    plain = Contender(PLAIN)
    try:
        llm.add_schema(Writer(has_roles=True).schema(_PROBE, plain))
    except UnsupportedError:
        return Writer(has_roles=False)
    llm.remove_schema(plain.schema_name)
    return Writer(has_roles=True)


def check_contender(llm: LLM, writer: Writer, contender: Contender) -> None:
    """Plans a small prompt with a policy. Adds a schema, and removes it.

    Raises:
        ClientError: The engine does not know the policy.
    """
    try:
        llm.add_schema(writer.schema(_PROBE, contender))
        llm.explain(writer.prompt(_PROBE, contender))
        llm.remove_schema(contender.schema_name)
    except ClientError as error:
        raise ClientError(f"policy {contender.name!r} cannot be used: {error.args[0]}") from error
