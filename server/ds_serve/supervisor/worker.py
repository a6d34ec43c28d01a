"""The worker of one version of a model through all its lives: starting, ready, gone, started
again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable

from ds_serve import metrics
from ds_serve.supervisor.backoff import Backoff
from ds_serve.supervisor.process import KILL_AFTER, Process
from ds_serve.transport.messages import ModelState

log = logging.getLogger(__name__)

LOADING, READY, RESTARTING, FAILED, STOPPED = (
    "loading", "ready", "restarting", "failed", "stopped",
)  # fmt: skip


class Keeper(ABC):
    """Keeps a version of a model served. `on_change` is called whenever `state` has changed."""

    def __init__(self, name: str, version: str, on_change: Callable[[], None]) -> None:
        self.state = ModelState(name, LOADING, version=version)
        self._on_change = on_change
        self._stopping = False
        self._changed = asyncio.Event()

    @property
    def name(self) -> str:
        return self.state.name

    @abstractmethod
    async def run(self) -> None:
        """Returns when the model has failed for good, or was stopped."""

    def look(self) -> None:  # noqa: B027 - workers do not depend on others
        """Some model's state has changed: an ensemble's may follow."""

    async def settled(self) -> None:
        """Wait until the model is ready or has failed."""
        while self.state.state not in (READY, FAILED, STOPPED):
            self._changed.clear()
            await self._changed.wait()

    @property
    def ready(self) -> bool:
        return self.state.state == READY

    def retire(self) -> None:
        """Go on serving, but do not start the worker again."""
        self._stopping = True

    @abstractmethod
    async def stop(self, grace: float) -> None:
        """End it; it is killed after `grace` seconds."""

    @abstractmethod
    def kill(self) -> None:
        """End it now."""

    def _become(self, state: str, reason: str = "") -> None:
        self.state.state, self.state.reason = state, reason
        self._changed.set()
        self._on_change()


class IdleKeeper(Keeper):
    """Keeps one that no process of ours serves: `run` goes on until it is `_ended`."""

    def __init__(self, name: str, version: str, on_change: Callable[[], None]) -> None:
        super().__init__(name, version, on_change)
        self._ended = asyncio.Event()

    async def run(self) -> None:
        await self._ended.wait()
        self._become(STOPPED)

    async def stop(self, grace: float) -> None:
        self.kill()

    def kill(self) -> None:
        self._stopping = True
        self._ended.set()


class RefusedKeeper(Keeper):
    """Stands for a version that may not be served: it has failed from the beginning."""

    def __init__(self, name: str, version: str, why: str, on_change: Callable[[], None]) -> None:
        super().__init__(name, version, on_change)
        self.state.state, self.state.reason, self.state.required = FAILED, why, False
        log.error("model %s version %s is not served: %s", name, version, why)

    async def run(self) -> None:
        return

    async def stop(self, grace: float) -> None:
        return

    def kill(self) -> None:
        return


class WorkerKeeper(Keeper):
    """Keeps it served by a process."""

    def __init__(self, name: str, version: str, on_change: Callable[[], None]) -> None:
        super().__init__(name, version, on_change)
        self._backoff = Backoff()
        self._process: Process | None = None
        self._ready_since: float | None = None

    async def run(self) -> None:
        while await self._live() and await self._mourn():
            pass
        if self._stopping:
            self._become(STOPPED)

    async def stop(self, grace: float) -> None:
        self._stopping = True
        process = self._process
        if process is None or not process.running:
            return
        self._ask_to_stop(process, grace)
        await process.end(grace + KILL_AFTER, "it did not stop in time")

    def kill(self) -> None:
        self._stopping = True
        if self._process is not None:
            self._process.kill("the server was told to stop at once")

    @abstractmethod
    async def _start(self, incarnation: int) -> Process:
        """Start the worker's process."""

    @abstractmethod
    async def _watch(self, process: Process) -> None:
        """Call `_is_ready` when the worker is, kill it when it hangs; until cancelled."""

    @abstractmethod
    def _ask_to_stop(self, process: Process, grace: float) -> None: ...

    async def _live(self) -> bool:
        """One life of the worker, from its start to its end; False if it was to end."""
        if self._stopping:
            return False
        self.state.incarnation += 1
        self._ready_since = None
        self._process = process = await self._start(self.state.incarnation)
        watching = asyncio.create_task(self._watch(process))
        try:
            await process.wait()
        finally:
            watching.cancel()
        return not self._stopping

    async def _mourn(self) -> bool:
        """Say why the worker ended unasked, and wait before the next start; False to give up."""
        assert self._process is not None
        reason = self._process.exit_reason
        served = 0.0 if self._ready_since is None else time.monotonic() - self._ready_since
        delay = None if self._process.permanent else self._backoff.after(served)
        if delay is None:
            crashes = self._backoff.crashes
            suffix = f" (after {crashes} crashes in a row)" if crashes > 1 else ""
            log.error("model %s has failed: %s%s", self.name, reason, suffix)
            self._become(FAILED, reason + suffix)
            return False
        log.error("model %s: %s; starting it again in %.2f s", self.name, reason, delay)
        metrics.worker_restarts.labels(self.name, self.state.version).inc()
        self._become(RESTARTING, reason)
        await asyncio.sleep(delay)
        return True

    def _is_ready(self) -> None:
        self._ready_since = time.monotonic()
        self._become(READY)
