"""Keeps an OpenAI-compatible server on a Unix socket: health is asked for over HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import aiohttp

from ds_engines.spec import ModelSpec
from ds_serve.supervisor.process import Process
from ds_serve.supervisor.worker import READY, WorkerKeeper

START_CHECK_SECONDS = 0.1
CHECK_SECONDS = 1.0
PROBE_SECONDS = 5.0

OK, UNAVAILABLE = 200, 503

Command = Callable[[Path], list[str]]
"""From the socket's path to the command that serves on it."""


class SocketKeeper(WorkerKeeper):
    """What all workers that are OpenAI servers have in common.

    `hang_timeout`: seconds for which the health check may fail.
    """

    def __init__(
        self, spec: ModelSpec, folder: Path, hang_timeout: float, on_change: Callable[[], None]
    ) -> None:
        super().__init__(spec.name, spec.version, on_change)
        self.state.spec = spec
        self._folder = folder
        self._hang_timeout = hang_timeout

    def _socket(self, incarnation: int) -> Path:
        socket = self._folder / f"{incarnation}.sock"
        self.state.address = str(socket)
        return socket

    async def _watch(self, process: Process) -> None:
        connector = aiohttp.UnixConnector(self.state.address)
        timeout = aiohttp.ClientTimeout(total=PROBE_SECONDS)
        async with aiohttp.ClientSession(
            "http://worker", connector=connector, timeout=timeout
        ) as session:
            while await health(session) != OK:
                self._look_at_start()
                await asyncio.sleep(START_CHECK_SECONDS)
            if await self._answers(session, process):
                self._is_ready()
                await self._watch_health(session, process)

    async def _watch_health(self, session: aiohttp.ClientSession, process: Process) -> None:
        well = time.monotonic()
        while self.state.state == READY:
            await asyncio.sleep(CHECK_SECONDS)
            status = await health(session)
            if status == OK:
                well = time.monotonic()
                await self._look(session, process)
            elif self._is_lost(process, status):
                return
            elif time.monotonic() - well > self._hang_timeout:
                process.kill(f"its worker hung: not healthy for over {self._hang_timeout:g} s")
                return

    def _look_at_start(self) -> None:
        """It is not up yet."""

    async def _answers(self, session: aiohttp.ClientSession, process: Process) -> bool:
        """Whether it does its work, now that it is up; otherwise it has been killed."""
        return True

    async def _look(self, session: aiohttp.ClientSession, process: Process) -> None:
        """It is healthy, as far as it says."""

    def _is_lost(self, process: Process, status: int) -> bool:
        """Whether there is no hope in what it says of its health, an HTTP status, or nothing: 0;
        then it has been killed.
        """
        return False

    def _ask_to_stop(self, process: Process, grace: float) -> None:
        process.terminate()


class TextWorkerKeeper(SocketKeeper):
    """Keeps one of ours."""

    def __init__(
        self,
        spec: ModelSpec,
        command: Command,
        folder: Path,
        hang_timeout: float,
        on_change: Callable[[], None],
    ) -> None:
        super().__init__(spec, folder, hang_timeout, on_change)
        self._command = command

    async def _start(self, incarnation: int) -> Process:
        command = self._command(self._socket(incarnation))
        return await Process.start(command, self._folder / f"{incarnation}.failure")


async def health(session: aiohttp.ClientSession) -> int:
    """The status that it answers with; 0 where it does not answer."""
    try:
        async with session.get("/health") as answer:
            return answer.status
    except (aiohttp.ClientError, TimeoutError, OSError):
        return 0
