"""Traces as OpenTelemetry spans: one for a request, and below it one for each of its stages.

They go to a collector by OTLP over HTTP, in a thread of the library's own. What is usual for
OpenTelemetry can be set as usual, by the environment: OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES,
OTEL_EXPORTER_OTLP_HEADERS, OTEL_BSP_SCHEDULE_DELAY and so on. Imported where spans are wanted only.
"""

from __future__ import annotations

import os
import time

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from ds_serve.spans import ids_of
from ds_serve.tracing import FIRST_ANSWER, Trace

STAGES = {
    "queue": ("QUEUE_START", "COMPUTE_START"),
    "compute_input": ("COMPUTE_START", "COMPUTE_INPUT_END"),
    "compute_infer": ("COMPUTE_INPUT_END", "COMPUTE_OUTPUT_START"),
    "compute_output": ("COMPUTE_OUTPUT_START", "COMPUTE_END"),
    "first_answer": ("REQUEST_START", FIRST_ANSWER),
    "more_answers": (FIRST_ANSWER, "REQUEST_END"),
}
"""Which times of a trace a stage lies between."""


class Ids(RandomIdGenerator):
    """Random, but for a span of which others were told before it was made."""

    def __init__(self) -> None:
        self.next: tuple[int, int] | None = None
        """The trace's and the span's own."""

    def generate_trace_id(self) -> int:
        return super().generate_trace_id() if self.next is None else self.next[0]

    def generate_span_id(self) -> int:
        given, self.next = self.next, None
        return super().generate_span_id() if given is None else given[1]


class Spans:
    """Sends spans to a collector at `endpoint`."""

    def __init__(self, endpoint: str) -> None:
        name = os.environ.get("OTEL_SERVICE_NAME", "ds-serve")
        self._ids = Ids()
        # What is to be traced was decided when the request came.
        self._provider = TracerProvider(
            sampler=ALWAYS_ON,
            resource=Resource.create({"service.name": name}),
            id_generator=self._ids,
        )
        exporter = OTLPSpanExporter(endpoint=endpoint)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("ds_serve")

    def keep(self, trace: Trace) -> None:
        """Make the spans of a request that has ended."""
        offset = time.time_ns() - time.monotonic_ns()
        times = dict(trace.times)
        first, last = min(times.values()), max(times.values())
        if trace.own:
            self._ids.next = ids_of(trace.own)
        span = self._tracer.start_span(
            "InferRequest",
            _context(trace.parent),
            SpanKind.SERVER,
            _about(trace),
            start_time=first + offset,
        )
        if trace.error:
            span.set_status(Status(StatusCode.ERROR, trace.error))
        below = set_span_in_context(span)
        for name, (begin, end) in STAGES.items():
            if begin in times and end in times:
                stage = self._tracer.start_span(name, below, start_time=times[begin] + offset)
                stage.end(times[end] + offset)
        span.end(last + offset)

    def close(self) -> None:
        """Send what waits."""
        self._provider.shutdown()


def _about(trace: Trace) -> dict[str, str]:
    about = {"model_name": trace.model, "model_version": trace.version, "id": trace.request_id}
    return {f"triton.{name}": value for name, value in about.items() if value}


def _context(parent: str) -> Context | None:
    if not parent:
        return None
    return TraceContextTextMapPropagator().extract({"traceparent": parent})
