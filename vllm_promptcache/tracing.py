"""OpenTelemetry spans of prompt modules, in the trace that has vLLM's span of the request.

`prompt_modules.plan` (parsing and planning, in the front end), `prompt_modules.wait` (for modules
that were missing) and `prompt_modules.encode` (of each of them) stand beside vLLM's `llm_request`:
below the client's span if its request has a `traceparent`, else below that of the plan.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.trace import Span
    from vllm.v1.request import Request

_SCOPE = "vllm_promptcache"
_PARENT = "traceparent"


def trace_plan(
    headers: Mapping[str, str] | None, duration_ns: tuple[int, int], attributes: Mapping[str, Any]
) -> Mapping[str, str]:
    """Records a plan; only for an engine with tracing on.

    Args:
        headers: Trace headers of the client's request, if it has any.
        duration_ns: Start and end in nanoseconds since the epoch.
        attributes: What is known of the plan.

    Returns:
        Headers by which all that follows belongs to the same trace.
    """
    from opentelemetry.trace import set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    start_ns, end_ns = duration_ns
    span = _start("prompt_modules.plan", headers, start_ns, attributes)
    span.end(end_ns)
    if headers and _PARENT in headers:
        return headers
    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier, set_span_in_context(span))
    return carrier


def trace_work(name: str, request: Request, duration_s: float, **attributes: Any) -> None:
    """Records what has just been done in the engine for a request, if it is traced."""
    if not request.trace_headers:
        return
    end_ns = time.time_ns()
    start_ns = end_ns - int(duration_s * 1e9)
    _start(f"prompt_modules.{name}", request.trace_headers, start_ns, attributes).end(end_ns)


def _start(
    name: str, headers: Mapping[str, str] | None, start_ns: int, attributes: Mapping[str, Any]
) -> Span:
    from opentelemetry import trace
    from vllm.tracing import extract_trace_context

    context = extract_trace_context(headers)
    tracer = trace.get_tracer(_SCOPE)
    return tracer.start_span(name, context, start_time=start_ns, attributes=dict(attributes))
