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

Command = Callable[[Path], list[str]]
"""From the socket's path to the command that serves on it."""


class TextWorkerKeeper(WorkerKeeper):
    """`hang_timeout`: seconds for which the health check may fail."""

    def __init__(
        self,
        spec: ModelSpec,
        command: Command,
        folder: Path,
        hang_timeout: float,
        on_change: Callable[[], None],
    ) -> None:
        super().__init__(spec.name, spec.version, on_change)
        self.state.spec = spec
        self._command = command
        self._folder = folder
        self._hang_timeout = hang_timeout

    async def _start(self, incarnation: int) -> Process:
        socket = self._folder / f"{incarnation}.sock"
        self.state.address = str(socket)
        return await Process.start(self._command(socket), self._folder / f"{incarnation}.failure")

    async def _watch(self, process: Process) -> None:
        connector = aiohttp.UnixConnector(self.state.address)
        timeout = aiohttp.ClientTimeout(total=PROBE_SECONDS)
        async with aiohttp.ClientSession(
            "http://worker", connector=connector, timeout=timeout
        ) as session:
            while not await _healthy(session):
                await asyncio.sleep(START_CHECK_SECONDS)
            self._is_ready()
            await self._watch_health(session, process)

    async def _watch_health(self, session: aiohttp.ClientSession, process: Process) -> None:
        well = time.monotonic()
        while self.state.state == READY:
            await asyncio.sleep(CHECK_SECONDS)
            if await _healthy(session):
                well = time.monotonic()
            elif time.monotonic() - well > self._hang_timeout:
                process.kill(f"its worker hung: not healthy for over {self._hang_timeout:g} s")
                return

    def _ask_to_stop(self, process: Process, grace: float) -> None:
        process.terminate()


async def _healthy(session: aiohttp.ClientSession) -> bool:
    try:
        async with session.get("/health") as answer:
            return answer.status == 200
    except (aiohttp.ClientError, TimeoutError, OSError):
        return False
