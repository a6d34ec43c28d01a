"""Ports: noticed when taken, then held for as long as the server lives."""

from __future__ import annotations

import errno
import socket

from ds_engines.errors import ConfigError


def hold(host: str, port: int, flag: str) -> socket.socket:
    """A bound socket which never listens, so that the gateways may bind the same port.

    SO_REUSEPORT would let two servers share a port unnoticed, so the port is first bound
    without it. Port 0 becomes a free one. Raises ConfigError where the port cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with _socket(family) as probe:
            probe.bind((host, port))
            port = probe.getsockname()[1]
        holder = _socket(family)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind((host, port))
    except OSError as error:
        raise ConfigError(_reason(error, host, port, flag)) from error
    return holder


def _socket(family: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return made


def _reason(error: OSError, host: str, port: int, flag: str) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use; choose another with {flag}, or 0 for a free one"
    if error.errno == errno.EACCES:
        return f"port {port} needs privileges that this user lacks; choose another with {flag}"
    return f"cannot listen on {host}:{port}: {error.strerror or error}; see --host and {flag}"
