"""The gateway processes: started at once, started again when one dies, told every change."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ds_engines.errors import LoadError
from ds_serve import child
from ds_serve.gateway.config import GatewayConfig
from ds_serve.supervisor.backoff import Backoff
from ds_serve.supervisor.control import Control
from ds_serve.supervisor.process import KILL_AFTER, Process
from ds_serve.transport.messages import (
    Hello,
    Listening,
    ModelState,
    Registry,
    Seen,
    Stop,
    ToSupervisor,
)
from ds_serve.transport.orders import Index, Load, Log, Order, Trace, Unload

log = logging.getLogger(__name__)


Asked = Callable[[str, Order], None]
"""What a client of a gateway wants of the server, with the gateway's name."""


class GatewayKeeper:
    """Keeps one gateway. `registry` gives what a new one must know first. `kind` is what its
    process is called, `module` what it runs.
    """

    kind = "gateway"
    module = "ds_serve.gateway"

    def __init__(
        self,
        index: int,
        configure: Callable[[str], GatewayConfig],
        control: Control,
        folder: Path,
        registry: Callable[[], Registry],
        on_news: Callable[[], None],
        on_order: Asked,
    ) -> None:
        self._index = index
        self._configure = configure
        self._control = control
        self._folder = folder
        self._registry = registry
        self._on_news = on_news
        self._on_order = on_order
        self._life = 0
        self._identity = ""
        self._process: Process | None = None
        self._stopping = False
        self._since: float | None = None
        self.up = asyncio.Event()
        self.seen: Seen | None = None
        """What it said last of the registry; None while it holds no model."""

    async def run(self) -> None:
        """Returns when stopped. Raises LoadError where the gateway cannot be kept alive."""
        backoff = Backoff()
        while (reason := await self._live()) is not None:
            lived = 0.0 if self._since is None else time.monotonic() - self._since
            hopeless = self._process is not None and self._process.permanent
            delay = None if hopeless else backoff.after(lived)
            if delay is None:
                raise LoadError(f"{self.kind} {self._index} cannot be kept alive: {reason}")
            log.error("%s %d: %s; starting it again", self.kind, self._index, reason)
            await asyncio.sleep(delay)

    async def _live(self) -> str | None:
        """One life of the gateway; why it ended, or None where it was to end."""
        if self._stopping:
            return None
        self._process = process = await self._start()
        await process.wait()
        self.up.clear()
        self.seen = None
        self._on_news()
        return None if self._stopping else process.exit_reason

    def tell(self, registry: Registry) -> None:
        self._control.send(self._identity, registry)

    async def stop(self, grace: float) -> None:
        """Drain: no new connections, `grace` seconds for the requests that are there."""
        self._stopping = True
        if self._process is None or not self._process.running:
            return
        if not self._control.send(self._identity, Stop(grace)):
            self._process.kill("it was stopped before it was up")
        await self._process.end(grace + KILL_AFTER, "it did not drain in time")

    def kill(self) -> None:
        self._stopping = True
        if self._process is not None:
            self._process.kill("the server was told to stop at once")

    async def _start(self) -> Process:
        self._control.ignore(self._identity)
        self._life += 1
        self._since = None
        self._identity = f"{self.kind}-{self._index}#{self._life}"
        self._control.listen(self._identity, self._hear)
        file = self._folder / f"{self.kind}-{self._index}.json"
        child.write(self._configure(self._identity), file)
        return await Process.start(
            [sys.executable, "-m", self.module, str(file)], file.with_suffix(".failure")
        )

    def _hear(self, message: ToSupervisor) -> None:
        match message:
            case Hello():
                self.seen = Seen(-1, [])
                self._control.send(self._identity, self._registry())
            case Listening():
                self._since = time.monotonic()
                self.up.set()
            case Seen():
                self.seen = message
                self._on_news()
            case Index() | Load() | Unload() | Trace() | Log():
                self._on_order(self._identity, message)


class BatchesKeeper(GatewayKeeper):
    """Keeps the process that owns files and batches, which sends requests to models as gateways
    do.
    """

    kind = "batches"
    module = "ds_serve.batches"


class Watcher(NamedTuple):
    """A worker that sends requests to other models: it must know them, and is waited for, as a
    gateway.
    """

    tell: Callable[[Registry], object]
    seen: Seen


class Gateways:
    """All gateways of a server. `states` gives the models as they are now."""

    def __init__(self, states: Callable[[], list[ModelState]]) -> None:
        self.keepers: list[GatewayKeeper] = []
        self._states = states
        self._serial = 0
        self._news = asyncio.Event()
        self._watchers: dict[str, Watcher] = {}

    def watch(self, worker: str, tell: Callable[[Registry], object]) -> None:
        """Tell that worker as well, now and whenever something changes."""
        self._watchers[worker] = Watcher(tell, Seen(-1, []))
        tell(self.registry())

    def saw(self, worker: str, seen: Seen) -> None:
        """It has taken a registry over."""
        if worker in self._watchers:
            self._watchers[worker] = self._watchers[worker]._replace(seen=seen)
            self.hear()

    def unwatch(self, worker: str) -> None:
        """It is gone."""
        if self._watchers.pop(worker, None) is not None:
            self.hear()

    def registry(self) -> Registry:
        return Registry(self._states(), self._serial)

    def tell(self) -> None:
        """Send every gateway the models as they are now."""
        self._serial += 1
        registry = self.registry()
        for keeper in self.keepers:
            keeper.tell(registry)
        for watcher in self._watchers.values():
            watcher.tell(registry)

    def hear(self) -> None:
        """A gateway has said something, or is gone."""
        self._news.set()

    async def know(self, within: float) -> None:
        """Wait until all that was told is known everywhere, `within` seconds at most."""
        serial = self._serial
        await self._until(lambda seen: seen.serial >= serial, within)

    async def leave(self, address: str, within: float) -> None:
        """Wait until the worker at `address`, which is in the registry no more, has answered all
        that it was sent.
        """
        serial = self._serial
        await self._until(
            lambda seen: seen.serial >= serial and address not in seen.leaving, within
        )

    def _seen(self) -> list[Seen]:
        told = [one.seen for one in self.keepers if one.seen is not None]
        return told + [one.seen for one in self._watchers.values()]

    async def _until(self, holds: Callable[[Seen], bool], within: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                while not all(map(holds, self._seen())):
                    self._news.clear()
                    await self._news.wait()
