"""`make demo`: the example prompts on the embedded model, with and without reuse."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from typing import TYPE_CHECKING

from rich.console import Console

from vllm_promptcache.examples import SCHEMAS, prompt_paths, schema_path
from vllm_promptcache.models import dtype_reason, embedded_model, fast_dtype

if TYPE_CHECKING:
    from vllm_promptcache import LLM
    from vllm_promptcache.examples.measure import Measurement

QUIET = {
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    # The engine in this process: it starts sooner, and its errors are seen here.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}
KV_CACHE_BYTES = 1 << 30


def main() -> int:
    """Runs the demo.

    Returns:
        The exit code: 0, or 1 with a message on stderr.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        run(Console(highlight=False))
    # vLLM has no base class for what goes wrong at start; this is where it would end anyway.
    except Exception as error:
        print(f"error: the demo failed: {error}", file=sys.stderr)
        if os.environ["VLLM_LOGGING_LEVEL"] == "ERROR":
            print("hint: VLLM_LOGGING_LEVEL=INFO shows what vLLM does", file=sys.stderr)
        return 1
    return 0


def run(console: Console) -> None:
    """Sets up the model and runs all prompts of all schemas."""
    console.rule("[bold]vllm-promptcache: prompt modules on a small model")
    model = embedded_model()
    console.print(f"Model: SmolLM2-135M-Instruct, in {model}")
    with console.status("Starting vLLM (about 20 seconds)"):
        start = time.perf_counter()
        llm, dtype = start_engine(str(model))
    console.print(f"vLLM is up after {time.perf_counter() - start:.0f} s.")
    console.print(f"It computes in {dtype_reason(dtype)}.")
    from vllm_promptcache.examples.report import print_summary

    print_summary(
        console, [measured for name in SCHEMAS for measured in run_schema(llm, console, name)]
    )


def start_engine(model: str) -> tuple[LLM, str]:
    """Starts vLLM with prompt modules, and runs a plain prompt so that nothing is left to load.

    Returns:
        The engine, and the `dtype` that is fast on this machine.
    """
    warnings.filterwarnings("ignore", category=FutureWarning)
    # vLLM's own logging is set up too late for what its first imports say.
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])
    # Importing vLLM takes seconds, and it reads the environment.
    from vllm_promptcache import LLM, SamplingParams

    dtype = fast_dtype()
    llm = LLM(
        model,
        dtype=dtype,
        max_model_len=8192,
        enforce_eager=True,
        kv_cache_memory_bytes=KV_CACHE_BYTES,
        use_tqdm_on_load=False,
    )
    llm.generate("The capital of France is", SamplingParams(max_tokens=4), use_tqdm=False)
    return llm, dtype


def run_schema(llm: LLM, console: Console, name: str) -> list[Measurement]:
    """Adds a schema, then runs its prompts one after the other."""
    from vllm_promptcache.examples.measure import measure
    from vllm_promptcache.examples.report import print_measurement, print_schema

    print_schema(console, llm.add_schema(schema_path(name)))
    measurements = []
    for path in prompt_paths(name):
        title = f"{name}: {path.stem.partition('-')[2]}"
        with console.status(f"Running {title}"):
            measurements.append(measure(llm, title, path.read_text(encoding="utf-8")))
        print_measurement(console, measurements[-1])
    return measurements


if __name__ == "__main__":
    sys.exit(main())
