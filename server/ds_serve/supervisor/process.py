"""One child process: how it is started, and why it ended."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from pathlib import Path

from ds_serve import metrics
from ds_serve.child import FAILURE_FILE, PERMANENT

KILL_AFTER = 5.0
"""Seconds that a process gets to end by itself once it was asked to."""

ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(128 << 20)}
"""For glibc: memory that a large tensor held is kept for the next one. Given back to the system,
it would have to be mapped and cleared anew, page by page, which can cost more than the request."""


class Process:
    """A started child. `exit_reason` is fit for a person."""

    def __init__(
        self, process: asyncio.subprocess.Process, failure: Path, *, family: bool = False
    ) -> None:
        self._process = process
        self._failure = failure
        self._family = family
        self._blame = ""

    @classmethod
    async def start(cls, command: list[str], failure: Path, *, family: bool = False) -> Process:
        """Start a command; should it fail, it may say why in the file `failure`. Of a `family`,
        processes that it has started and that stayed in its group die with it.
        """
        failure.unlink(missing_ok=True)
        environment = {**ALLOCATOR, **os.environ, FAILURE_FILE: str(failure)}
        # In a session of its own, so that a signal to our process group (Ctrl-C in a terminal)
        # reaches the supervisor alone, which ends its children in the right order.
        process = await asyncio.create_subprocess_exec(
            *command,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        return cls(process, failure, family=family)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.returncode is None

    @property
    def permanent(self) -> bool:
        """It would fail in the same way again."""
        return self._process.returncode == PERMANENT

    @property
    def succeeded(self) -> bool:
        return self._process.returncode == 0

    @property
    def exit_reason(self) -> str:
        return self._blame or self.said or f"its process {_manner(self._process.returncode)}"

    @property
    def said(self) -> str:
        """What the process itself says of its failure; "" where nothing."""
        try:
            return self._failure.read_text().strip()
        except OSError:
            return ""

    async def wait(self) -> None:
        await self._process.wait()
        self._end_family()
        metrics.forget(self.pid)

    def kill(self, blame: str) -> None:
        """End it at once, for the reason given."""
        self._blame = self._blame or blame
        if self._family:
            # No second signal: the library would look for the process, and find it gone.
            self._end_family()
        else:
            self._signal(signal.SIGKILL)

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    async def end(self, within: float, blame: str) -> None:
        """Wait until it ends by itself; kill it after `within` seconds."""
        try:
            await asyncio.wait_for(self.wait(), within)
        except TimeoutError:
            self.kill(blame)
            await self.wait()

    def _end_family(self) -> None:
        if self._family:
            # It leads the group; the group outlives it while any of them does.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self.running:
            try:
                self._process.send_signal(number)
            except ProcessLookupError:
                return


def _manner(status: int | None) -> str:
    if status is None:
        return "still runs"
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"ended with status {status}"
