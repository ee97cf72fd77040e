"""What a request costs a server: memory of its processes, and answers that it holds up."""

from __future__ import annotations

import time
from contextlib import suppress
from threading import Event, Thread
from types import TracebackType
from urllib.parse import urlsplit

import httpx
import psutil

MEGABYTE = 2**20
_INTERVAL_S = 0.01


def server_process(url: str) -> psutil.Process:
    """The API server: the process of this machine that listens on the address's port.

    Where several do, as with `--api-server-count`, the first of them.
    """
    port = urlsplit(url).port
    for connection in psutil.net_connections("tcp"):
        is_there = connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
        if is_there and connection.pid is not None:
            return psutil.Process(connection.pid)
    raise RuntimeError(f"no process of this machine listens on port {port}")


class Watch:
    """Watches a server while a `with` block runs.

    Attributes:
        seconds: How long the block took.
        peak_mb: Most memory that the API server held.
        growth_mb: How much more that is than before the block.
        engine_growth_mb: The same for all processes below it together.
        stall_seconds: Longest time that `/health` took to answer meanwhile.
    """

    def __init__(self, url: str, process: psutil.Process) -> None:
        self.seconds = self.peak_mb = self.growth_mb = self.engine_growth_mb = 0.0
        self.stall_seconds = 0.0
        self._client = httpx.Client(base_url=url, timeout=300)
        # Looked up once: a search through all processes would cost the server its cores.
        self._process, self._below = process, process.children(recursive=True)
        self._done = Event()
        self._threads = [Thread(target=self._sample), Thread(target=self._ask)]

    def __enter__(self) -> Watch:
        self._before = self._memory()
        self._peaks = self._before
        self._client.get("/health")  # connects
        for thread in self._threads:
            thread.start()
        self._since = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.seconds = time.perf_counter() - self._since
        self._done.set()
        for thread in self._threads:
            thread.join()
        self._client.close()
        (server, engine), (server_before, engine_before) = self._peaks, self._before
        self.peak_mb = server / MEGABYTE
        self.growth_mb = (server - server_before) / MEGABYTE
        self.engine_growth_mb = (engine - engine_before) / MEGABYTE

    def _memory(self) -> tuple[int, int]:
        """Bytes of the API server, and of the processes below it."""
        below = 0
        for process in self._below:
            with suppress(psutil.NoSuchProcess):
                below += process.memory_info().rss
        return self._process.memory_info().rss, below

    def _sample(self) -> None:
        while not self._done.wait(_INTERVAL_S):
            server, below = self._memory()
            self._peaks = max(server, self._peaks[0]), max(below, self._peaks[1])

    def _ask(self) -> None:
        while not self._done.wait(_INTERVAL_S):
            since = time.perf_counter()
            self._client.get("/health")
            self.stall_seconds = max(self.stall_seconds, time.perf_counter() - since)
