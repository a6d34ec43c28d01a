"""The supervisor's end of the control links: one socket for all children, told by name."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from ds_serve.transport.codec import frames_of, read_to_supervisor
from ds_serve.transport.link import Link, listen
from ds_serve.transport.messages import FromSupervisor, Hello, ToSupervisor

Listener = Callable[[ToSupervisor], None]


class Control:
    """Delivers each child's messages to whoever listens for that child."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.greeting: FromSupervisor | None = None
        """What each child is told first."""
        self._listeners: dict[str, Listener] = {}
        self._links: dict[str, Link] = {}
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        self._server = await listen(self.path, lambda: Link(self._receive, on_lost=self._forget))

    def listen(self, identity: str, listener: Listener) -> None:
        self._listeners[identity] = listener

    def ignore(self, identity: str) -> None:
        self._listeners.pop(identity, None)

    def send(self, identity: str, message: FromSupervisor) -> bool:
        """False where that child is not connected."""
        link = self._links.get(identity)
        return link is not None and link.send(frames_of([message]))

    def broadcast(self, message: FromSupervisor) -> None:
        """To all children that are connected."""
        for identity in list(self._links):
            self.send(identity, message)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for link in list(self._links.values()):
            link.close()

    def _receive(self, link: Link, frames: list[memoryview]) -> None:
        for message in read_to_supervisor(frames):
            if isinstance(message, Hello):
                link.name = message.identity
                self._links[link.name] = link
                if self.greeting is not None:
                    self.send(link.name, self.greeting)
            listener = self._listeners.get(link.name)
            if listener is not None:
                listener(message)

    def _forget(self, link: Link) -> None:
        if self._links.get(link.name) is link:
            del self._links[link.name]
