"""Entry of a gateway process: one Gateway object, an HTTP server and a gRPC server over it."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import socket
import struct
import sys
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial

import uvicorn
import uvloop
from grpc import aio

from ds_engines.errors import ConfigError
from ds_serve import child, logs, metrics
from ds_serve.gateway.budget import Budget
from ds_serve.gateway.config import GatewayConfig
from ds_serve.gateway.gateway import Gateway
from ds_serve.gateway.grpc import envoy
from ds_serve.gateway.grpc import server as grpc_server
from ds_serve.gateway.grpc.service import InferenceService
from ds_serve.gateway.http import rest
from ds_serve.gateway.http.app import Application
from ds_serve.gateway.http.express import Protocol
from ds_serve.security.asgi import Guarded
from ds_serve.security.crowd import Cap, Capped
from ds_serve.security.guard import Guard
from ds_serve.security.pace import Paced
from ds_serve.security.tls import Certificates
from ds_serve.transport.codec import frames_of, read_from_supervisor
from ds_serve.transport.link import Link, connect
from ds_serve.transport.messages import (
    Hello,
    Listening,
    Registry,
    Reply,
    Seen,
    Stop,
    Tuning,
)

log = logging.getLogger("ds_serve.gateway")

LAST_CALLS = 0.3
"""Seconds between the word to stop and the closing of the ports. Meanwhile the readiness check
fails and answers say `Connection: close`, so that clients move on by themselves."""

LATE_REQUESTS = 0.2
"""Seconds between the closing of the HTTP port and that of connections which have no request:
the newest have sent theirs, and it was not read yet."""

LAST_ANSWERS = 1.0
"""Seconds that the refusals of what was not finished get to leave."""

RENEW_EVERY = 5.0
"""Seconds between two looks at the certificates."""

SO_ATTACH_FILTER = 26
BPF_RETURN = 6


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the supervisor says when to stop."""

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        return nullcontext()

    async def stop_accepting(self, listener: socket.socket) -> None:
        """Close the listener, but first take the connections that wait in its backlog: closing
        alone would reset them, and the requests that they have sent already.
        """
        _refuse_new(listener)
        waiting = []
        with suppress(OSError):
            while True:
                waiting.append(listener.accept()[0])
        for server in self.servers:
            server.close()
        for connection in waiting:
            connection.setblocking(False)
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection)

    def _protocol(self) -> asyncio.Protocol:
        return self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )


async def serve(config: GatewayConfig) -> None:
    gateway = Gateway(
        config.limits,
        folder=config.control.parent,
        strict_readiness=config.strict_readiness,
    )
    gateway.name = config.name
    registries: asyncio.Queue[Registry] = asyncio.Queue()
    budget = Budget(config.limits.max_request_bytes, config.limits.max_bytes_in_flight)
    stop: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def obey(link: Link, frames: list[memoryview]) -> None:
        for message in read_from_supervisor(frames):
            match message:
                case Registry():
                    registries.put_nowait(message)
                case Reply():
                    gateway.control.answered(message)
                case Tuning():
                    logs.apply(message.logs, config.identity)
                    gateway.tune(message)
                case Stop() if not stop.done():
                    gateway.draining = True
                    stop.set_result(message.grace)

    supervisor = await connect(config.control, Link(obey))
    gateway.control.bind(lambda order: supervisor.send(frames_of([order])))
    supervisor.send(frames_of([Hello(config.identity)]))
    # One that joins other gateways at their ports must know the models from its first request on.
    await update(gateway, registries, supervisor)
    updating = asyncio.create_task(keep_updated(gateway, registries, supervisor))
    guard = config.security.guard(config.control.parent)
    certificates = Certificates(config.security.tls) if config.security.tls.on else None
    http = _http(config, _application(config, gateway, budget, guard), guard, certificates)
    service = InferenceService(gateway, budget, guard)
    grpc = grpc_server.build(
        service,
        config.grpc_server,
        f"{_bracketed(config.host)}:{config.grpc_port}",
        config.limits,
        compressed=config.grpc_compressed,
        tls=config.security.tls,
    )
    await grpc.start()
    listener = listen(config.host, config.http_port)
    serving = asyncio.create_task(http.serve(sockets=[listener]))
    chores = (_tell_metrics(config, gateway), asyncio.create_task(_renew(certificates)))
    while not http.started and not serving.done():
        await asyncio.sleep(0.01)
    child.settle()
    supervisor.send(frames_of([Listening()]))
    grace = await stop
    await asyncio.sleep(min(LAST_CALLS, grace))
    await http.stop_accepting(listener)
    await asyncio.sleep(min(LATE_REQUESTS, grace))
    http.should_exit = True
    closing = asyncio.create_task(_close(grpc, service, grace + LAST_ANSWERS))
    _, unfinished = await asyncio.wait({serving, closing}, timeout=grace)
    updating.cancel()
    gateway.close()
    if unfinished:
        log.warning("requests were still running after %.1f s; they fail now", grace)
        await asyncio.wait(unfinished, timeout=LAST_ANSWERS)
    metrics.tell_all()
    for chore in chores:
        chore.cancel()
    supervisor.close()


def _application(
    config: GatewayConfig, gateway: Gateway, budget: Budget, guard: Guard
) -> Application:
    files = config.control.parent if config.files else None
    return Application(gateway, budget, guard, files)


async def _close(server: aio.Server, service: InferenceService, grace: float) -> None:
    service.end_streams()
    await server.stop(grace)


async def update(gateway: Gateway, registries: asyncio.Queue[Registry], supervisor: Link) -> None:
    """Take over the supervisor's next registry, and say so now and whenever a worker is left."""
    registry = await registries.get()

    def report() -> None:
        supervisor.send(frames_of([Seen(registry.serial, gateway.leaving)]))

    await gateway.update(registry)
    gateway.on_left = report
    report()


async def keep_updated(
    gateway: Gateway, registries: asyncio.Queue[Registry], supervisor: Link
) -> None:
    """`update` for ever."""
    while True:
        await update(gateway, registries, supervisor)


def _tell_metrics(config: GatewayConfig, gateway: Gateway) -> asyncio.Future[None]:
    """Serve the metrics on a port of their own, until cancelled, if there is one."""
    if not config.metrics_port:
        return asyncio.get_running_loop().create_future()
    server = _Server(
        uvicorn.Config(
            rest.metrics_alone(gateway), ws="none", lifespan="off", log_config=None,
            access_log=False, server_header=False,
        )
    )  # fmt: skip
    listener = listen(config.host, config.metrics_port)
    return asyncio.ensure_future(server.serve(sockets=[listener]))


async def _renew(certificates: Certificates | None) -> None:
    while certificates is not None:
        await asyncio.sleep(RENEW_EVERY)
        certificates.refresh()


class _Connection(Capped, Paced, Protocol):
    """One of so many, whose client must keep pace."""


def _http(
    config: GatewayConfig,
    application: Application,
    guard: Guard,
    certificates: Certificates | None,
) -> _Server:
    factory = None if certificates is None else lambda *_: certificates.http
    return _Server(
        uvicorn.Config(
            Guarded(application, guard, config.security.open_metrics),
            http=partial(  # type: ignore[arg-type]
                _Connection,
                infer=application.infer,
                pace=config.security.pace,
                cap=Cap(config.limits.max_connections),
            ),
            ssl_context_factory=factory,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_keep_alive=75,
            backlog=4096,
        )
    )


def listen(host: str, port: int) -> socket.socket:
    """A socket that shares its port with the other gateways; the kernel spreads connections."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind((host, port))
    return listener


def _refuse_new(listener: socket.socket) -> None:
    """Let no more connections into the backlog: a packet filter drops all that arrives, while
    those that are there stay. Only Linux has this; elsewhere a few may come in meanwhile.
    """
    if sys.platform != "linux":
        return
    drop_all = ctypes.create_string_buffer(struct.pack("HBBI", BPF_RETURN, 0, 0, 0))
    program = struct.pack("HL", 1, ctypes.addressof(drop_all))
    with suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def main() -> int:
    config = child.begin(sys.argv[1], GatewayConfig)
    if config.grpc_server == "pyvoy":
        try:
            envoy.become(sys.argv[1], config)
        except ConfigError as error:
            return child.fail(str(error), permanent=True)
    uvloop.run(serve(config))
    return 0


if __name__ == "__main__":
    sys.exit(main())
