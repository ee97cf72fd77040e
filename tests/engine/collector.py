"""A collector of OpenTelemetry spans, as vLLM sends them by HTTP."""

from __future__ import annotations

import gzip
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(slots=True)
class Collector:
    """Keeps what it gets.

    Attributes:
        url: Where it listens.
        spans: What has come, in the protocol's form.
    """

    url: str
    spans: list[Any] = field(default_factory=list)

    def trace(self, trace_id: str, num_spans: int) -> dict[str, Any]:
        """The spans of a trace by name; waits until there are as many."""
        for _ in range(100):
            found = [span for span in self.spans if span.trace_id.hex() == trace_id]
            if len(found) >= num_spans:
                break
            time.sleep(0.1)
        return {span.name: span for span in found}


@contextmanager
def collecting() -> Iterator[Collector]:
    """Runs a collector, and tells engines that are started inside to send without delay."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                data = gzip.decompress(data)
            request = ExportTraceServiceRequest.FromString(data)
            collector.spans += [
                span
                for resource in request.resource_spans
                for scope in resource.scope_spans
                for span in scope.spans
            ]
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            """Says nothing."""

    with (
        ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server,
        pytest.MonkeyPatch.context() as m,
    ):
        m.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")
        m.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
        collector = Collector(f"http://127.0.0.1:{server.server_port}/v1/traces")
        Thread(target=server.serve_forever, daemon=True).start()
        yield collector
        server.shutdown()
