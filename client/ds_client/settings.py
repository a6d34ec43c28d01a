"""What both clients are told: where the server is, and how to speak to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import grpc

from ds_client.errors import InvalidRequest
from ds_client.lease import Leases
from ds_client.retry import ONCE, USUAL, Retry
from ds_client.shared_memory import SharedMemory

OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # Otherwise calls fail for up to two minutes after the server has come back.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
)
APART = ("grpc.use_local_subchannel_pool", 1)
"""A connection of its own: gRPC's channels to one address would share one."""

UNREGISTER_SECONDS = 2.0
"""How long a server may take to forget a region; nobody depends on it."""

COMPRESSIONS = {
    None: grpc.Compression.NoCompression,
    "gzip": grpc.Compression.Gzip,
    "deflate": grpc.Compression.Deflate,
}


@dataclass(frozen=True, slots=True)
class TLS:
    """Files in PEM. `roots`: whom to trust, the system's authorities without; `certificate` and
    `key`: who this client is, for a server that asks; `server_name`: what the server's certificate
    says where that is not the address.
    """

    roots: str | Path | None = None
    certificate: str | Path | None = None
    key: str | Path | None = None
    server_name: str = ""

    def credentials(self) -> grpc.ChannelCredentials:
        """Raises InvalidRequest for a file that cannot be read."""
        if (self.certificate is None) != (self.key is None):
            raise InvalidRequest("TLS: certificate and key go together")
        read = (_read(self.roots), _read(self.key), _read(self.certificate))
        return grpc.ssl_channel_credentials(*read)


class Settings:
    """Base of both clients.

    `address`: host:port of the server's gRPC port. `timeout`: seconds that bound every call but
    streams, all attempts together; None: no bound. `api_key` travels as `authorization: Bearer …`;
    `headers` go with every call. `tls`: True, or what to trust and whom to be; or `credentials` of
    gRPC's own. `compression` is of what is sent. `connections`: calls take turns over so many;
    several reach several gateways. `retry`: None tries everything once. `shared_memory`: the
    server is on this machine, and large tensors go through /dev/shm.
    """

    def __init__(  # noqa: PLR0913
        self,
        address: str = "localhost:8001",
        *,
        timeout: float | None = 60.0,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        tls: TLS | bool = False,
        credentials: grpc.ChannelCredentials | None = None,
        compression: Literal["gzip", "deflate"] | None = None,
        connections: int = 1,
        retry: Retry | None = USUAL,
        shared_memory: bool = False,
    ) -> None:
        self._address = address
        self._timeout = timeout
        self._headers = _headers(headers or {}, api_key)
        tls = TLS() if tls is True else tls
        self._credentials = tls.credentials() if isinstance(tls, TLS) else credentials
        if compression not in COMPRESSIONS:
            raise InvalidRequest(f"compression is {compression!r}; it must be gzip or deflate")
        self._compression = COMPRESSIONS[compression]
        if connections < 1:
            raise InvalidRequest(f"connections is {connections}; there must be one at least")
        self._connections = connections
        self._options = _options(tls.server_name if isinstance(tls, TLS) else "", connections)
        self._retry = retry or ONCE
        self._leases = Leases(SharedMemory()) if shared_memory else None
        self._closed = False
        self._open()

    def _open(self) -> None:
        """Everything is told."""


def _headers(headers: Mapping[str, str], api_key: str | None) -> tuple[tuple[str, str], ...]:
    """gRPC wants names in lower case."""
    found = {name.lower(): value for name, value in headers.items()}
    if api_key is not None:
        found["authorization"] = f"Bearer {api_key}"
    return tuple(found.items())


def _options(server_name: str, connections: int) -> list[tuple[str, int | str]]:
    options = list(OPTIONS)
    if connections > 1:
        options.append(APART)
    if server_name:
        options.append(("grpc.ssl_target_name_override", server_name))
    return options


def _read(path: str | Path | None) -> bytes | None:
    try:
        return None if path is None else Path(path).read_bytes()
    except OSError as error:
        raise InvalidRequest(f"TLS: {path} cannot be read: {error.strerror}") from None
