"""A collector of OpenTelemetry's spans."""

from __future__ import annotations

import gzip
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Collector:
    """Takes what is exported over OTLP and HTTP."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.services: set[str] = set()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                packed = self.headers.get("content-encoding") == "gzip"
                collector.take(gzip.decompress(body) if packed else body)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}/v1/traces"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def take(self, body: bytes) -> None:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for name in resource.resource.attributes:
                if name.key == "service.name":
                    self.services.add(name.value.string_value)
            for scope in resource.scope_spans:
                self.spans.extend(scope.spans)

    def roots(self, **about: str) -> list[Any]:
        """Spans of requests that have these attributes."""
        return [
            span
            for span in list(self.spans)
            if span.name == "InferRequest" and about.items() <= attributes(span).items()
        ]

    def below(self, root: Any) -> list[Any]:
        return [span for span in list(self.spans) if span.parent_span_id == root.span_id]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def attributes(span: Any) -> dict[str, str]:
    return {each.key.removeprefix("triton."): each.value.string_value for each in span.attributes}
