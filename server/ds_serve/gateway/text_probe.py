"""Looks now and then whether another server is there, so that no request has to find out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from ds_serve.gateway.breaker import CLOSED, Breaker

AGAIN = 2.0
"""Seconds to the next look at a server that did not answer, or is left alone."""

SECONDS = 5.0
"""How long an answer may take."""

PROOFS = 2
"""Looks in a row that find no server, after which it is left alone."""

Ask = Callable[[], Awaitable[bool]]


class Probe:
    """Of one server. `ask` says whether it answers; `changed` is called after each look, `every` so
    many seconds. Requests that are answered are looks too: tell it by `answered`.
    """

    def __init__(
        self, breaker: Breaker, ask: Ask, changed: Callable[[], None], every: float
    ) -> None:
        self._breaker = breaker
        self._ask = ask
        self._changed = changed
        self._every = every
        self._again = min(AGAIN, every)
        self._missed = 0
        self._heard = -every
        self._task = asyncio.ensure_future(self._keep_looking()) if every else None

    def answered(self) -> None:
        self._heard = time.monotonic()
        self._missed = 0

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _keep_looking(self) -> None:
        while True:
            quiet = time.monotonic() - self._heard >= self._every
            if quiet or self._missed or self._breaker.state != CLOSED:
                await self._look()
            calm = not self._missed and self._breaker.state == CLOSED
            await asyncio.sleep(self._every if calm else self._again)

    async def _look(self) -> None:
        if await self._answers():
            self._missed = 0
            self._breaker.found()
        else:
            self._missed += 1
            if self._missed >= PROOFS:
                # Until the next look at it has failed, or not.
                self._breaker.hold(self._again + SECONDS)
        self._changed()

    async def _answers(self) -> bool:
        try:
            async with asyncio.timeout(SECONDS):
                return await self._ask()
        except TimeoutError:
            return False
