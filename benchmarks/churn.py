"""What a server keeps of schemas that have gone, and of tenants that come once.

    python -m benchmarks.churn MODEL schemas
    python -m benchmarks.churn MODEL tenants

Two API servers answer for one engine. Schemas are posted, used by a prompt and deleted; or tenants,
each with a salt of its own, ask a private schema one prompt. Printed are the memory of all
processes and the lines of /metrics, before and after; before is after a tenth of the number, so
that what a server needs once does not count.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

import httpx
import psutil

from benchmarks.workloads import words

ROUTE = "/v1/prompt_schemas"
NUM_CLIENTS = 4
NUM_WORDS = 12
DEFAULTS = {"schemas": 500, "tenants": 2000}
# A tenant's copy of a schema is as large as the schema has modules.
NUM_MODULES = {"schemas": 40, "tenants": 400}
SERVE = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve"]
OPTIONS = [
    "--served-model-name=model",
    "--api-server-count=2",
    "--enforce-eager",
    "--max-model-len=2048",
    "--kv-cache-memory-bytes=268435456",
    "--enable-prompt-modules",
    "--prompt-modules-repair=none",
    "--prompt-modules-encode=isolated",
]


@dataclass(frozen=True, slots=True)
class Server:
    """A running server.

    Attributes:
        url: Where it answers; its API servers take connections in turn.
        process: The process that has started all others.
    """

    url: str
    process: psutil.Process

    def call(self, method: str, path: str, body: object = None) -> str:
        """Sends a request over a connection of its own, and returns the answer."""
        answer = httpx.request(method, self.url + path, json=body, timeout=300)
        answer.raise_for_status()
        return answer.text

    def ask(self, schema: str, **fields: str) -> None:
        """Asks a prompt that imports two modules of a schema in an order that moves them."""
        text = f'<prompt schema="{schema}"><m1/><m0/> And so</prompt>'
        body = {"model": "model", "prompt": text, "max_tokens": 1}
        self.call("POST", "/v1/completions", body | fields)

    def measure(self) -> dict[str, float]:
        """MiB of memory of each process by its title, and the number of lines of /metrics."""
        time.sleep(3)  # counts travel with the next output, and servers look around once a second
        found: dict[str, float] = {}
        for process in (self.process, *self.process.children(recursive=True)):
            title = " ".join(process.cmdline())
            if "VLLM::" in title:
                found[f"{title}, MiB"] = process.memory_info().rss / 2**20
        return found | {"lines of /metrics": len(self.call("GET", "/metrics").splitlines())}


def schema(name: str, number: int, num_modules: int, attributes: str) -> str:
    """A schema whose texts no other one has."""
    rng = Random(number)
    modules = (f'<module name="m{i}">{words(rng, NUM_WORDS)}</module>' for i in range(num_modules))
    return f'<schema name="{name}" layout="compact" {attributes}>{"".join(modules)}</schema>'


def schemas(server: Server) -> Callable[[int], None]:
    """Posts a schema, asks each API server, and deletes it."""

    def visit(number: int) -> None:
        name = f"s{number}"
        server.call("POST", ROUTE, {"schema": schema(name, number, NUM_MODULES["schemas"], "")})
        for _ in range(2):
            server.ask(name)
        server.call("DELETE", f"{ROUTE}/{name}")

    return visit


def tenants(server: Server) -> Callable[[int], None]:
    """Asks a private schema with a new salt."""
    private = schema("tenants", 0, NUM_MODULES["tenants"], 'private="true"')
    server.call("POST", ROUTE, {"schema": private})
    return lambda number: server.ask("tenants", cache_salt=f"tenant {number}")


@contextmanager
def serving(model: str) -> Iterator[Server]:
    """Starts a server, and ends it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        command = [*SERVE, model, *OPTIONS, f"--port={port}", f"--prompt-schemas={folder}"]
        with log.open("w") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(process, url, log)
            yield Server(url, psutil.Process(process.pid))
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    while process.poll() is None:
        try:
            httpx.get(f"{url}/health", timeout=5).raise_for_status()
            return
        except httpx.HTTPError:
            time.sleep(0.5)
    raise SystemExit(log.read_text()[-3000:])


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("what", choices=DEFAULTS)
    parser.add_argument("--number", type=int, help="how many schemas or tenants come")
    args = parser.parse_args()
    number = args.number or DEFAULTS[args.what]
    with serving(args.model) as server, ThreadPoolExecutor(NUM_CLIENTS) as clients:
        visit = {"schemas": schemas, "tenants": tenants}[args.what](server)
        list(clients.map(visit, range(number // 10)))
        before, start = server.measure(), time.monotonic()
        list(clients.map(visit, range(number // 10, number)))
        seconds = time.monotonic() - start
        after = server.measure()
    print(f"{number} {args.what}, the last nine tenths in {seconds:.0f} s")
    print(f"{'':40}{'before':>9}{'after':>9}{'more':>9}")
    for name, value in after.items():
        print(f"{name:40}{before[name]:9,.0f}{value:9,.0f}{value - before[name]:9,.0f}")


if __name__ == "__main__":
    main()
