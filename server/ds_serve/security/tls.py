"""Encryption of both ports; certificates are read again when they change."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ds_engines.errors import ConfigError

if TYPE_CHECKING:
    import grpc

log = logging.getLogger(__name__)


class TLS(msgspec.Struct, frozen=True):
    """Paths of PEM files. With `client_ca` a client must show a certificate that it signed."""

    certificate: str = ""
    key: str = ""
    client_ca: str = ""

    @property
    def on(self) -> bool:
        return bool(self.certificate)

    def check(self) -> None:
        """Raises ConfigError naming the file that is missing, cannot be read, or does not fit."""
        if bool(self.certificate) != bool(self.key):
            raise ConfigError(
                "TLS needs a certificate and its key: --tls-certificate and --tls-key"
            )
        if self.client_ca and not self.on:
            raise ConfigError(
                "--tls-client-ca: clients can be asked for certificates only where TLS is on"
            )
        if self.on:
            http_context(self)


class Certificates:
    """Keeps the certificate of running servers new. Call `refresh` every few seconds."""

    def __init__(self, tls: TLS) -> None:
        """Raises ConfigError."""
        self._tls = tls
        self._marks = _marks(tls)
        self.http = http_context(tls)
        """For uvicorn; connections from now on get the newest certificate."""

    def refresh(self) -> bool:
        """Whether there were new files, and they are right. What is wrong is told to the log once,
        and changes nothing. Authorities may be added this way; to distrust one needs a new start.
        """
        marks = _marks(self._tls)
        if marks == self._marks:
            return False
        self._marks = marks
        try:
            http_context(self._tls)
            _load(self.http, self._tls)
        except ConfigError as error:
            log.error("the certificate stays as it was: %s", error)
            return False
        log.info("%s: new certificate", self._tls.certificate)
        return True


def http_context(tls: TLS) -> ssl.SSLContext:
    """TLS 1.2 and above. Raises ConfigError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    _load(context, tls)
    return context


def grpc_credentials(tls: TLS) -> grpc.ServerCredentials:
    """For grpcio, which asks at each connection whether there is a new certificate. Raises
    ConfigError.
    """
    import grpc  # noqa: PLC0415 - the supervisor knows this module and needs no grpc

    tls.check()
    fetch = _Fetcher(tls)
    return grpc.dynamic_ssl_server_credentials(
        fetch.first,
        fetch,  # type: ignore[arg-type]  # its None is not in the stubs
        require_client_authentication=bool(tls.client_ca),
    )


class _Fetcher:
    """Called from threads of gRPC's own, for each handshake."""

    def __init__(self, tls: TLS) -> None:
        self._tls = tls
        self._marks = _marks(tls)
        self.first = _configuration(tls)

    def __call__(self) -> grpc.ServerCertificateConfiguration | None:
        """None: as it was."""
        marks = _marks(self._tls)
        if marks == self._marks:
            return None
        self._marks = marks
        try:
            self._tls.check()
            return _configuration(self._tls)
        except (ConfigError, OSError) as error:
            log.error("the certificate stays as it was: %s", error)
            return None


def _configuration(tls: TLS) -> grpc.ServerCertificateConfiguration:
    import grpc  # noqa: PLC0415

    roots = Path(tls.client_ca).read_bytes() if tls.client_ca else None
    pair = (Path(tls.key).read_bytes(), Path(tls.certificate).read_bytes())
    return grpc.ssl_server_certificate_configuration([pair], root_certificates=roots)


def _load(context: ssl.SSLContext, tls: TLS) -> None:
    _try(f"certificate {tls.certificate}", lambda: Path(tls.certificate).read_bytes())
    _try(f"key {tls.key}", lambda: Path(tls.key).read_bytes())
    _try(
        f"certificate {tls.certificate} with key {tls.key}",
        lambda: context.load_cert_chain(tls.certificate, tls.key, password=_no_password),
    )
    if tls.client_ca:
        _try(f"authorities {tls.client_ca}", lambda: context.load_verify_locations(tls.client_ca))
        context.verify_mode = ssl.CERT_REQUIRED


def _try(what: str, load: Callable[[], object]) -> None:
    try:
        load()
    except (OSError, ValueError) as error:
        raise ConfigError(f"TLS: {what} cannot be used: {error}") from None


def _no_password() -> str:
    raise ValueError("the key is encrypted, and there is nobody to ask for its password")


def _marks(tls: TLS) -> list[tuple[int, int] | None]:
    """What tells the files of now from those of later."""
    return [_mark(Path(path)) for path in (tls.certificate, tls.key, tls.client_ca) if path]


def _mark(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_ino, found.st_mtime_ns)
