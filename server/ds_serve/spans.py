"""Whether and where traces go as OpenTelemetry spans; `otlp` makes and sends them."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping

from ds_engines.errors import ConfigError
from ds_serve.extras import installed

EXPORTER = "opentelemetry.exporter.otlp.proto.http"

PARENT = "traceparent"
"""The header, and gRPC's metadata, in which W3C has callers name their span."""

_HEADER = PARENT.encode()
_PARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})"
)
"""The trace, the span in it, and two digits that say by their lowest bit whether it is traced."""


def check(endpoint: str) -> None:
    """Raises ConfigError where spans cannot be sent to it."""
    if not re.fullmatch(r"https?://[^\s/]+(/\S*)?", endpoint):
        raise ConfigError(
            f"--otlp-endpoint {endpoint}: it must be an address, such as "
            "http://127.0.0.1:4318/v1/traces"
        )
    if not installed("opentelemetry.sdk") or not installed(EXPORTER):
        raise ConfigError('--otlp-endpoint needs OpenTelemetry: pip install "ds-serve[otel]"')


def parent_in(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """The caller's span, as a gRPC call's metadata names it; "" where it does not."""
    return next((str(value) for name, value in metadata if name == PARENT), "")


def parent_of(headers: Mapping[bytes, bytes]) -> str:
    """The caller's span, as an HTTP request's headers name it; "" where they do not."""
    return headers.get(_HEADER, b"").decode("latin-1")


def sampled(parent: str) -> bool | None:
    """Whether the caller traces this request; None where it does not say."""
    match = _PARENT.fullmatch(parent)
    return bool(int(match[3], 16) & 1) if match else None


def below(parent: str) -> str:
    """A new span below the caller's, or of a new trace, as the header names it."""
    match = _PARENT.fullmatch(parent)
    return f"00-{match[1] if match else secrets.token_hex(16)}-{secrets.token_hex(8)}-01"


def ids_of(span: str) -> tuple[int, int]:
    """The trace's and the span's own, of a header that `below` has made."""
    _, trace, own, _ = span.split("-")
    return int(trace, 16), int(own, 16)
