"""`vllm serve --enable-prompt-modules` in processes of its own, as users run it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

MAX_MODEL_LEN = 1024
ENGINE_OPTIONS = [
    "--enforce-eager",
    f"--max-model-len={MAX_MODEL_LEN}",
    "--kv-cache-memory-bytes=134217728",
    "--dtype=float32",
]
VLLM = [sys.executable, "-m", "vllm.entrypoints.cli.main"]
MODEL_NAME = "smol"
MODULES_ALONE = {"--prompt-modules-repair": "none", "--prompt-modules-promote-after": "0"}


def environment() -> dict[str, str]:
    """The environment of a command: the engine in processes of its own, a log to look into."""
    return os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_LOGGING_LEVEL": "INFO"}


@contextmanager
def running_server(
    model: Path, schemas: Path, *options: str, env: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Serves `model` with the schemas of a folder, and yields the server's address.

    Args:
        options: More of the command line; modules are neither repaired nor promoted unless it
            says so.
        env: More of the environment.
    """
    port = free_port()
    command = [*VLLM, "serve", str(model), "--served-model-name", MODEL_NAME]
    command += ["--host", "127.0.0.1", "--port", str(port), *ENGINE_OPTIONS, *options]
    command += ["--enable-prompt-modules", "--prompt-schemas", str(schemas)]
    for option, value in MODULES_ALONE.items():
        command += [] if option in options else [option, value]
    path = schemas / "server.log"
    with path.open("w") as log:
        server = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            env=environment() | dict(env or {}),
            start_new_session=True,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_ready(server, url, path)
            yield url
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(60)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _wait_until_ready(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    for _ in range(1200):
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
            return
        except OSError:
            assert server.poll() is None, log.read_text()[-3000:]
            time.sleep(0.5)
    raise AssertionError(log.read_text()[-3000:])
