"""Whether and where traces go as OpenTelemetry spans; `otlp` makes and sends them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ds_engines.errors import ConfigError
from ds_serve.extras import installed

EXPORTER = "opentelemetry.exporter.otlp.proto.http"

PARENT = "traceparent"
"""The header, and gRPC's metadata, in which W3C has callers name their span."""

_PARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-([0-9a-f]{2})")
"""The last two digits say by their lowest bit whether it is traced."""


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


def sampled(parent: str) -> bool | None:
    """Whether the caller traces this request; None where it does not say."""
    match = _PARENT.fullmatch(parent)
    return bool(int(match[1], 16) & 1) if match else None
