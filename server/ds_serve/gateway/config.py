"""What the supervisor tells a gateway."""

from __future__ import annotations

import msgspec

from ds_serve.child import ChildConfig
from ds_serve.edge.rules import Rule
from ds_serve.security.settings import Security

SERVER = "ds-serve"
"""What the server calls itself, unless it is told to call itself otherwise."""


class Limits(msgspec.Struct, frozen=True):
    """Bounds that the front-ends keep. Sizes are in bytes, times in seconds. `max_connections` of
    each port of a gateway; 0 for any number. `max_tokens_in_flight` of one text model in all
    gateways together; 0 for what its worker has room for. `fallbacks`: who stands in for whom.
    `escalations`: which models ask another, and when.
    `replica_routing`: by what a request is given to one of several workers of a text model.
    `upstream_probe`: from one look at another server to the next; 0 for none.
    """

    request_timeout: float = 60.0
    text_timeout: float = 600.0
    max_request_bytes: int = 256 * 1024 * 1024
    max_bytes_in_flight: int = 1024 * 1024 * 1024
    max_connections: int = 0
    max_tokens_in_flight: int = 0
    max_text_queue: int = 1024
    replica_routing: str = "prefix"
    upstream_probe: float = 10.0
    fallbacks: dict[str, str] = {}
    escalations: dict[str, Rule] = {}


class GatewayConfig(ChildConfig, frozen=True, kw_only=True):
    """Ports are real by now: the supervisor has resolved 0 to a free one. `files` is the folder of
    files and batches; "" where there are none.
    """

    name: str = SERVER
    host: str
    http_port: int
    grpc_port: int
    metrics_port: int = 0
    grpc_server: str = "native"
    grpc_compressed: bool = False
    limits: Limits
    security: Security = Security()
    strict_readiness: bool = True
    files: str = ""
    batch_requests: int = 8
