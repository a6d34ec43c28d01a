"""Runs batches, a few lines at one time and all of them behind what clients wait for."""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import Callable
from io import FileIO

import orjson

from ds_engines.errors import Forbidden, Overloaded, ServeError, Unavailable
from ds_serve.batches import lines
from ds_serve.batches.lines import Line
from ds_serve.batches.store import Batch, Store, new_id, now
from ds_serve.gateway.gateway import Gateway
from ds_serve.gateway.text_body import read_json
from ds_serve.gateway.text_way import Ask
from ds_serve.security.text_ledger import LOWEST

log = logging.getLogger(__name__)

PAUSE, LONGEST = 0.5, 30.0
"""Seconds before a line is asked again whose model was busy, the first time and at most."""

BUSY = frozenset({429, 502, 503, 504})
KEPT_DAYS = 30
LOOK_EVERY = 30.0
"""Seconds from one look for what has expired to the next."""

Allows = Callable[[str, str], bool]
"""Whether the key of that name may use that model."""


class Runner:
    """`at_once`: lines of all batches together."""

    def __init__(self, gateway: Gateway, store: Store, allows: Allows, at_once: int) -> None:
        self._gateway = gateway
        self._store = store
        self._allows = allows
        self._places = asyncio.Semaphore(at_once)
        self._at_once = at_once
        self._running: dict[str, asyncio.Task[None]] = {}
        self._expiring: asyncio.Task[None] | None = None

    def resume(self) -> None:
        """Go on with whatever has not ended."""
        for batch in self._store.batches.values():
            if not batch.ended:
                self.begin(batch)
        self._expiring = asyncio.ensure_future(self._expire())

    def begin(self, batch: Batch) -> None:
        task = asyncio.ensure_future(self._run(batch))
        self._running[batch.id] = task
        task.add_done_callback(lambda _: self._running.pop(batch.id, None))

    def cancel(self, batch: Batch) -> None:
        """Answers that are there already are kept."""
        batch.become("cancelling")
        self._store.keep(batch)
        if batch.id in self._running:
            self._running[batch.id].cancel()

    async def close(self) -> None:
        """Stop; the next process goes on."""
        tasks = [*self._running.values(), *([self._expiring] if self._expiring else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _expire(self) -> None:
        while True:
            self._store.expire()
            await asyncio.sleep(LOOK_EVERY)

    async def _run(self, batch: Batch) -> None:
        try:
            if batch.status == "validating" and not await self._validated(batch):
                return
            if batch.status == "in_progress":
                async with asyncio.timeout(max(0, batch.expires_at - now())):
                    await self._answer_all(batch)
            self._finish(batch, "cancelled" if batch.status == "cancelling" else "completed")
        except TimeoutError:
            self._finish(batch, "expired")
        except asyncio.CancelledError:
            if batch.status != "cancelling":
                raise
            self._finish(batch, "cancelled")
        except Exception:
            log.exception("batch %s failed", batch.id)
            batch.become("failed")
            self._store.keep(batch)

    async def _validated(self, batch: Batch) -> bool:
        path = self._store.data(batch.input_file_id)
        count, batch.errors = await asyncio.to_thread(lines.errors_of, path, batch.endpoint)
        batch.request_counts.total = count
        batch.become("failed" if batch.errors else "in_progress")
        self._store.keep(batch)
        return batch.errors is None

    async def _answer_all(self, batch: Batch) -> None:
        output, error = (self._store.part(batch, kind) for kind in ("output", "error"))
        well, ill = lines.done(output), lines.done(error)
        batch.request_counts.completed, batch.request_counts.failed = len(well), len(ill)
        left = asyncio.Semaphore(self._at_once)
        with FileIO(output, "ab") as outputs, FileIO(error, "ab") as errors:
            async with asyncio.TaskGroup() as group:
                for line in lines.read(self._store.data(batch.input_file_id), batch.endpoint):
                    assert isinstance(line, Line), "it was validated"
                    if line.custom_id in well or line.custom_id in ill:
                        continue
                    await left.acquire()
                    task = group.create_task(self._answer(batch, line, outputs, errors))
                    task.add_done_callback(lambda _: left.release())
            for file in (outputs, errors):
                os.fsync(file.fileno())

    async def _answer(self, batch: Batch, line: Line, outputs: FileIO, errors: FileIO) -> None:
        id = new_id("batch_req_")
        try:
            status, body = await self._patiently(batch, line, id)
            text = lines.answered(id, line.custom_id, status, id, body)
        except ServeError as error:
            status, text = 0, lines.failed(id, line.custom_id, error.kind, str(error))
        except Exception:
            log.exception("batch %s line %d failed", batch.id, line.number)
            message = "the server failed on this request; its log says why"
            status, text = 0, lines.failed(id, line.custom_id, "EngineFailure", message)
        # One write of a whole line: a crash leaves it there, or not.
        (outputs if status == 200 else errors).write(text)
        counts = batch.request_counts
        if status == 200:
            counts.completed += 1
        else:
            counts.failed += 1

    async def _patiently(self, batch: Batch, line: Line, id: str) -> tuple[int, object]:
        """The answer; a model that is busy or not there is asked again until the batch expires."""
        pause = PAUSE
        while True:
            wait = None
            try:
                async with self._places:
                    status, wait, body = await self._ask(batch, line, id)
                if status not in BUSY:
                    return status, body
            except (Overloaded, Unavailable) as error:
                if error.retry_after is None:
                    raise
                wait = error.retry_after
            pause = min(2 * pause, LONGEST)
            await asyncio.sleep(max(wait or 0.0, pause * random.uniform(0.5, 1.0)))  # noqa: S311

    async def _ask(self, batch: Batch, line: Line, id: str) -> tuple[int, float | None, object]:
        data = orjson.dumps(line.body)
        about = read_json(batch.endpoint, data)
        model, backend = await self._gateway.names.find(about.model)
        if not self._allows(batch.owner, about.model) and not self._allows(batch.owner, model):
            raise Forbidden(f"key {batch.owner!r} does not allow model {about.model!r}")
        timeout = self._gateway.limits.text_timeout
        headers = {"content-type": "application/json", "x-request-id": id}
        headers["x-request-timeout"] = f"{timeout:g}"
        ask = Ask(
            "POST", batch.endpoint, data, headers, timeout, about, key=batch.owner, priority=LOWEST
        )
        async with backend.way.forward(ask) as reply:
            body = await reply.read()
        wait = reply.headers.get("retry-after", "")
        return reply.status, float(wait) if wait.isdecimal() else None, _json(body)

    def _finish(self, batch: Batch, status: str) -> None:
        if batch.status == "in_progress":
            batch.become("finalizing")
            self._store.keep(batch)
        expires_at = now() + KEPT_DAYS * 86_400
        for kind in ("output", "error"):
            path = self._store.part(batch, kind)
            if path.exists():
                lines.done(path)
                id = self._store.adopt(path, batch, kind, expires_at)
                setattr(batch, f"{kind}_file_id", id)
                self._store.keep(batch)
        batch.become(status)
        self._store.keep(batch)


def _json(body: bytes) -> object:
    try:
        return orjson.loads(body)
    except ValueError:
        return body.decode(errors="replace")
