"""Keeps an engine worker of ours: readiness, liveness and orders travel on the control link."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ds_serve import child
from ds_serve.supervisor.control import Control
from ds_serve.supervisor.gateways import Gateways
from ds_serve.supervisor.process import Process
from ds_serve.supervisor.worker import READY, WorkerKeeper
from ds_serve.transport.messages import Beat, Loaded, Seen, Stop, ToSupervisor, Watch
from ds_serve.worker.config import WorkerConfig

CHECK_SECONDS = 0.5

Configure = Callable[[str, Path], WorkerConfig]
"""From the worker's name on the control link, and its socket, to its config."""


class TensorWorkerKeeper(WorkerKeeper):
    """`hang_timeout`: seconds that one batch, or silence, may last."""

    def __init__(
        self,
        name: str,
        version: str,
        configure: Configure,
        control: Control,
        folder: Path,
        hang_timeout: float,
        on_change: Callable[[], None],
        *,
        gateways: Gateways | None = None,
    ) -> None:
        super().__init__(name, version, on_change)
        self._configure = configure
        self._control = control
        self._folder = folder
        self._hang_timeout = hang_timeout
        self._gateways = gateways
        self._identity = ""
        self._busy = 0.0
        self._heard = 0.0

    async def _start(self, incarnation: int) -> Process:
        self._control.ignore(self._identity)
        self._identity = f"{self.name}#{self._folder.name}.{incarnation}"
        self._control.listen(self._identity, self._hear)
        config = self._configure(self._identity, self._folder / f"{incarnation}.sock")
        file = self._folder / f"{incarnation}.json"
        child.write(config, file)
        return await Process.start(
            [sys.executable, "-m", "ds_serve.worker", str(file)],
            self._folder / f"{incarnation}.failure",
        )

    async def _live(self) -> bool:
        try:
            return await super()._live()
        finally:
            if self._gateways is not None:
                self._gateways.unwatch(self._identity)

    async def _watch(self, process: Process) -> None:
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            if self.state.state != READY:
                continue
            silent = time.monotonic() - self._heard
            if max(self._busy, silent) > self._hang_timeout:
                what = "a batch ran" if self._busy > silent else "it gave no sign of life"
                process.kill(f"its worker hung: {what} for over {self._hang_timeout:g} s")
                return

    def _ask_to_stop(self, process: Process, grace: float) -> None:
        if not self._control.send(self._identity, Stop(grace)):
            process.kill("it was stopped before it was loaded")

    def _hear(self, message: ToSupervisor) -> None:
        self._heard = time.monotonic()
        match message:
            case Loaded():
                self.state.spec = message.spec
                self.state.address = message.address
                self._busy = 0.0
                self._is_ready()
            case Beat():
                self._busy = message.busy
            case Watch() if self._gateways is not None:
                identity = self._identity
                self._gateways.watch(identity, lambda now: self._control.send(identity, now))
            case Seen() if self._gateways is not None:
                self._gateways.saw(self._identity, message)
