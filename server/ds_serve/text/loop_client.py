"""The HTTP half's end of the engine loop: starts it, asks it, notices its death."""

from __future__ import annotations

import asyncio
import collections
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import msgspec
import zmq
import zmq.asyncio

from ds_engines.errors import (
    EngineFailure,
    InvalidRequest,
    RateLimited,
    ServeError,
    Unavailable,
    from_kind,
)
from ds_engines.openvino_genai import Delta, Load
from ds_engines.openvino_sampling import Sampling, TextConfig
from ds_serve.text.hang import Patience, processor_seconds
from ds_serve.text.messages import (
    Add,
    Cancel,
    Failed,
    Loaded,
    LogSettings,
    LoopSettings,
    Step,
    decode_from_loop,
    encode,
)


class Job(msgspec.Struct):
    """One answer wanted: a choice of a request."""

    prompt: list[int]
    sampling: Sampling


HELD = 64
"""Deltas that may wait for one who is not in a hurry: reading them takes about a millisecond."""


class Generation:
    """The answers of one request on their way; iterate for choice, delta and when it came, then
    `close`. `prompt`: each delta is wanted at once, and not just the end.
    """

    def __init__(
        self, client: LoopClient, jobs: Sequence[Job], first: int, *, prompt: bool
    ) -> None:
        self._client = client
        self._first = first
        self._prompt = prompt
        self._open = set(range(len(jobs)))
        self._arrived: collections.deque[tuple[Delta, float]] = collections.deque()
        self._wake = asyncio.Event()
        self._error: ServeError | None = None

    @property
    def ids(self) -> list[int]:
        """The numbers in the loop of those choices that go on."""
        return [self._first + choice for choice in self._open]

    def put(self, delta: Delta, now: float) -> None:
        self._arrived.append((delta, now))
        if self._prompt or delta.finish or len(self._arrived) >= HELD:
            self._wake.set()

    def fail(self, error: ServeError) -> None:
        """End the iteration with this error, once what has arrived is read."""
        self._error = self._error or error
        self._wake.set()

    def finish(self, choice: int) -> None:
        """No more is wanted of this choice."""
        if choice in self._open:
            self._client.cancel([self._first + choice])
            self._open.discard(choice)

    def close(self) -> None:
        """No more is wanted at all."""
        if self._open:
            self._client.cancel(self.ids)
            self._open.clear()

    async def __aiter__(self) -> AsyncIterator[tuple[int, Delta, float]]:
        while self._open:
            while self._arrived:
                delta, now = self._arrived.popleft()
                choice = delta.id - self._first
                if choice not in self._open:
                    continue
                if delta.error is not None:
                    raise from_kind(*delta.error)
                if delta.finish:
                    self._open.discard(choice)
                yield choice, delta, now
            if self._open:
                await self._arrival()

    async def _arrival(self) -> None:
        if self._error is not None:
            raise self._error
        self._wake.clear()
        await self._wake.wait()


class LoopClient:
    """Owns the engine-loop process, which is reached through a socket at `endpoint`.

    A loop that owes a step for `hang_timeout` seconds is killed, and so ends its requests; where
    others keep the processors from it, for as many seconds of theirs.
    `loaded` resolves when the model has generated a token, or with the reason why it cannot.
    `ended` resolves, with the reason, when the process is gone.
    """

    def __init__(
        self,
        config: TextConfig,
        max_queue: int,
        logging: LogSettings,
        endpoint: Path,
        hang_timeout: float,
    ) -> None:
        self._config = config
        self._logging = logging
        self._endpoint = endpoint
        self._hang_timeout = hang_timeout
        self.max_queue = max_queue
        self._generations: dict[int, Generation] = {}
        self._numbers = 0
        self._heard = time.monotonic()
        self._load = Load(0, 0, 0.0)
        # Called with the engine's load and the pending answers when either changes.
        self.on_load: Callable[[Load, int], None] = lambda load, pending: None
        loop = asyncio.get_running_loop()
        self.loaded: asyncio.Future[Loaded] = loop.create_future()
        self.ended: asyncio.Future[ServeError] = loop.create_future()
        self._context: zmq.asyncio.Context | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start the process; returns before the model is loaded."""
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.set_hwm(0)
        address = f"ipc://{self._endpoint}"
        self._socket.bind(address)
        settings = LoopSettings(address, os.getpid(), self._logging, self._config)
        argument = msgspec.json.encode(settings, enc_hook=str).decode()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "ds_serve.text.loop", argument
        )
        self._process = process
        duties = (self._read(), self._watch(process), self._guard(process))
        self._tasks = [asyncio.create_task(duty) for duty in duties]

    async def stop(self) -> None:
        """Kill the process and release the socket."""
        for task in self._tasks:
            task.cancel()
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        if self._context is not None:
            self._context.destroy(0)
        self._endpoint.unlink(missing_ok=True)

    @property
    def pending(self) -> int:
        """Answers waiting or running."""
        return len(self._generations)

    def silence(self) -> float:
        """Seconds that the loop has owed a step; 0 with nothing pending."""
        return time.monotonic() - self._heard if self._generations else 0.0

    def submit(self, jobs: Sequence[Job], *, prompt: bool = True) -> Generation:
        """Ask for answers, each piece as soon as it is there, or without `prompt` in larger lots.
        Raises RateLimited where the queue is full, Unavailable before loading and after the loop's
        end.
        """
        self._check(len(jobs))
        if not self._generations:
            self._heard = time.monotonic()
        generation = Generation(self, jobs, self._numbers, prompt=prompt)
        for number, job in enumerate(jobs, self._numbers):
            self._generations[number] = generation
            self._send(Add(number, job.prompt, job.sampling))
        self._numbers += len(jobs)
        self._tell()
        return generation

    def _check(self, wanted: int) -> None:
        if self.ended.done():
            raise Unavailable(str(self.ended.result()))
        if not self.loaded.done():
            raise Unavailable("the model is still loading")
        if wanted > self.max_queue:
            raise InvalidRequest(
                f"{wanted} answers wanted at once; the queue holds {self.max_queue} in all"
            )
        if self.pending + wanted > self.max_queue:
            raise RateLimited(
                f"{self.pending} answers are waiting or running; the queue holds {self.max_queue}"
            )

    def cancel(self, numbers: Sequence[int]) -> None:
        """Forget these answers and have the loop drop them."""
        known = [number for number in numbers if self._generations.pop(number, None)]
        if known and not self.ended.done():
            self._send(Cancel(known))
        self._tell()

    def fail_all(self, error: ServeError) -> None:
        """End every request in flight with this error."""
        for generation in set(self._generations.values()):
            generation.fail(error)

    def _tell(self) -> None:
        self.on_load(self._load, self.pending)

    def _send(self, message: Add | Cancel) -> None:
        # With no high-water mark a send on a bound pair is done at once or queued in order.
        self._socket.send(encode(message))

    async def _read(self) -> None:
        while True:
            message = decode_from_loop(await self._socket.recv())
            self._heard = time.monotonic()
            if isinstance(message, Step):
                self._step(message)
            elif isinstance(message, Loaded):
                self.loaded.set_result(message)
            else:
                self._end(message)

    def _step(self, message: Step) -> None:
        self._load = message.load
        for delta in message.deltas:
            generation = self._generations.get(delta.id)
            if generation is None:
                continue
            if delta.finish:
                del self._generations[delta.id]
            generation.put(delta, self._heard)
        self._tell()

    def _end(self, message: Failed) -> None:
        self._finish(from_kind(message.kind, message.message))

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        code = await process.wait()
        # The process may have said why: that message, if any, is already on its way.
        await asyncio.sleep(0.05)
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        self._finish(EngineFailure(f"the engine process ended ({how})"))

    async def _guard(self, process: asyncio.subprocess.Process) -> None:
        """Kill a loop that hangs: nothing else would ever end its requests."""
        patience = Patience(self._hang_timeout, lambda: processor_seconds(process.pid))
        while not patience.is_over(self.silence()):
            await asyncio.sleep(min(1.0, self._hang_timeout / 4))
        self._finish(EngineFailure(f"the engine hung: no step in {self.silence():.0f} s"))
        process.kill()

    def _finish(self, error: ServeError) -> None:
        if self.ended.done():
            return
        self.ended.set_result(error)
        if not self.loaded.done():
            self.loaded.set_exception(error)
            self.loaded.exception()  # looked at, so that nobody has to
        self.fail_all(error)
