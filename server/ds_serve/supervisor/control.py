"""The supervisor's end of the control links: one socket for all children, told by name."""

from __future__ import annotations

from collections.abc import Callable

import zmq

from ds_serve.transport.codec import frames_of, read_to_supervisor
from ds_serve.transport.link import Link, router
from ds_serve.transport.messages import FromSupervisor, ToSupervisor

Listener = Callable[[ToSupervisor], None]


class Control:
    """Delivers each child's messages to whoever listens for that child."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._listeners: dict[str, Listener] = {}
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        self._link = Link(router(context, address), self._receive)

    def listen(self, identity: str, listener: Listener) -> None:
        self._listeners[identity] = listener

    def ignore(self, identity: str) -> None:
        self._listeners.pop(identity, None)

    def send(self, identity: str, message: FromSupervisor) -> bool:
        """False where that child is not connected."""
        return self._link.send([identity.encode(), *frames_of([message])])

    def close(self) -> None:
        self._link.close()

    def _receive(self, frames: list[zmq.Frame]) -> None:
        listener = self._listeners.get(frames[0].bytes.decode())
        if listener is not None:
            for message in read_to_supervisor(frames[1:]):
                listener(message)
