"""The gateway processes: started at once, started again when one dies."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ds_engines.errors import LoadError
from ds_serve import child
from ds_serve.gateway.config import GatewayConfig
from ds_serve.supervisor.backoff import Backoff
from ds_serve.supervisor.control import Control
from ds_serve.supervisor.process import KILL_AFTER, Process
from ds_serve.transport.messages import Hello, Listening, Registry, Stop, ToSupervisor

log = logging.getLogger(__name__)


class GatewayKeeper:
    """Keeps one gateway. `registry` gives what a new one must know first."""

    def __init__(
        self,
        index: int,
        configure: Callable[[str], GatewayConfig],
        control: Control,
        folder: Path,
        registry: Callable[[], Registry],
    ) -> None:
        self._index = index
        self._configure = configure
        self._control = control
        self._folder = folder
        self._registry = registry
        self._life = 0
        self._identity = ""
        self._process: Process | None = None
        self._stopping = False
        self._since: float | None = None
        self.up = asyncio.Event()

    async def run(self) -> None:
        """Returns when stopped. Raises LoadError where the gateway cannot be kept alive."""
        backoff = Backoff()
        while (reason := await self._live()) is not None:
            delay = backoff.after(0.0 if self._since is None else time.monotonic() - self._since)
            if delay is None:
                raise LoadError(f"gateway {self._index} cannot be kept alive: {reason}")
            log.error("gateway %d: %s; starting it again", self._index, reason)
            await asyncio.sleep(delay)

    async def _live(self) -> str | None:
        """One life of the gateway; why it ended, or None where it was to end."""
        if self._stopping:
            return None
        self._process = process = await self._start()
        await process.wait()
        self.up.clear()
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
        self._identity = f"gateway-{self._index}#{self._life}"
        self._control.listen(self._identity, self._hear)
        file = self._folder / f"gateway-{self._index}.json"
        child.write(self._configure(self._identity), file)
        return await Process.start(
            [sys.executable, "-m", "ds_serve.gateway", str(file)], file.with_suffix(".failure")
        )

    def _hear(self, message: ToSupervisor) -> None:
        match message:
            case Hello():
                self._control.send(self._identity, self._registry())
            case Listening():
                self._since = time.monotonic()
                self.up.set()
