"""Keeps a vLLM server: tells how far its start-up is, and finds an engine that is dead or hangs."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import aiohttp
import msgspec

from ds_engines.spec import ModelSpec
from ds_serve.supervisor.process import Process
from ds_serve.supervisor.text_worker import UNAVAILABLE, SocketKeeper
from ds_serve.supervisor.worker import LOADING, RESTARTING
from ds_serve.vllm import probes
from ds_serve.vllm.guard import Job

log = logging.getLogger(__name__)

FIRST_TOKEN_SECONDS = 600.0
"""The first request may compile kernels."""

TELL_SECONDS = 0.2

LOOKS = 4
"""How often within the hang timeout is looked whether the engine moves."""

Make = Callable[[Path, Path], Job]
"""From the socket's path, and that of the file for the progress, to what is to be run."""


class VllmKeeper(SocketKeeper):
    """`hang_timeout`: seconds for which the health check may fail, the engine may make no step
    while it has requests, and a token may then take that is asked for as a proof.
    """

    def __init__(
        self,
        spec: ModelSpec,
        make: Make,
        folder: Path,
        hang_timeout: float,
        on_change: Callable[[], None],
    ) -> None:
        super().__init__(spec, folder, hang_timeout, on_change)
        self._make = make
        self._progress = folder / "progress"
        self._watchdog = probes.Watchdog(hang_timeout, time.monotonic)
        self._next_look = 0.0

    async def _start(self, incarnation: int) -> Process:
        self._progress.unlink(missing_ok=True)
        job = self._make(self._socket(incarnation), self._progress)
        file = self._folder / f"{incarnation}.json"
        file.write_bytes(msgspec.json.encode(job))
        log.debug("model %s: %s", self.name, " ".join(job.command))
        return await Process.start(
            [sys.executable, "-m", "ds_serve.vllm", str(file)],
            file.with_suffix(".failure"),
            family=True,
        )

    def _look_at_start(self) -> None:
        try:
            step = self._progress.read_text()
        except OSError:
            step = "starting vLLM"
        if self.state.state == LOADING and step and step != self.state.reason:
            self._become(LOADING, step)

    async def _answers(self, session: aiohttp.ClientSession, process: Process) -> bool:
        try:
            path = await probes.first_answer(session, self.name, FIRST_TOKEN_SECONDS)
        except probes.NoAnswer as error:
            process.kill(f"its first token did not come: {process.said or error}")
            return False
        if not path:
            log.warning(
                "model %s: it takes none of the requests that ds-serve knows to ask for a first "
                "answer, and is served without one", self.name,
            )  # fmt: skip
        self._watchdog = probes.Watchdog(self._hang_timeout, time.monotonic)
        return True

    async def _look(self, session: aiohttp.ClientSession, process: Process) -> None:
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + self._hang_timeout / LOOKS
        with suppress(aiohttp.ClientError, TimeoutError, OSError):
            if not self._watchdog.suspects(await probes.pulse(session)):
                return
            log.warning("model %s: its engine makes no step; asking for a token", self.name)
            if await self._watchdog.hangs(session, self.name):
                await self._end(
                    process,
                    "its engine hung: it had requests, made no step for over "
                    f"{self._hang_timeout:g} s, and answered no other request",
                )

    async def _end(self, process: Process, blame: str) -> None:
        """The gateways hear why before they lose it: then clients are told, too."""
        self._become(RESTARTING, blame)
        await asyncio.sleep(TELL_SECONDS)
        process.kill(blame)

    def _is_lost(self, process: Process, status: int) -> bool:
        """vLLM answers so once its engine is dead, and ends some seconds later, which are lost."""
        if status == UNAVAILABLE:
            process.kill(f"its engine died{': ' if process.said else ''}{process.said}")
        return status == UNAVAILABLE
