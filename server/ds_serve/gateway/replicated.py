"""A tensor model that several workers serve, each on a device of its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from hashlib import blake2b
from itertools import count

from ds_engines.errors import Lost, ServeError, Unavailable
from ds_engines.spec import ModelSpec
from ds_serve.gateway.backend import TensorBackend
from ds_serve.gateway.regions import Regions
from ds_serve.gateway.requests import (
    Abandon,
    Done,
    InferReply,
    InferRequest,
    answered,
)
from ds_serve.transport.arena import Block
from ds_serve.transport.messages import BatchStatistics, Duration, ModelState, Statistics

log = logging.getLogger(__name__)


class _Way:
    """The way to one worker. `rows`: sent there and not answered; `last`: when it was chosen."""

    def __init__(self, address: str, backend: TensorBackend) -> None:
        self.address, self.backend = address, backend
        self.rows = self.last = 0

    def __lt__(self, other: _Way) -> bool:
        return (self.rows, self.last) < (other.rows, other.last)


class _Sent:
    """One request on its way; its rows are counted off once."""

    def __init__(self, way: _Way, rows: int, done: Done) -> None:
        self._way, self._rows, self._done = way, rows, done
        self.abandon: Abandon | None = None
        way.rows += rows

    def told(self, outcome: InferReply | ServeError) -> None:
        self.forget()
        self._done(outcome)

    def leave(self) -> None:
        if self.abandon is not None:
            self.abandon()
        self.forget()

    def forget(self) -> None:
        self._way.rows -= self._rows
        self._rows = 0


class ReplicatedBackend:
    """Each request goes to the worker with the fewest rows under way; those of one sequence all go
    to one.
    """

    def __init__(self, spec: ModelSpec, regions: Regions) -> None:
        self.spec = spec
        self.held = 0
        self._regions = regions
        self._ways: dict[str, _Way] = {}
        self._turns = count(1)

    async def move(self, state: ModelState) -> None:
        """Use the workers that are named. Raises OSError where none of them can be reached."""
        addresses = state.replicas
        for address in set(self._ways) - set(addresses):
            self._ways.pop(address).backend.close(_lost(self.spec))
        failed: OSError | None = None
        for address in addresses:
            if address not in self._ways:
                backend = TensorBackend(self.spec, self._regions)
                try:
                    await backend.connect(address)
                except OSError as error:
                    log.warning("model %s: no link to a worker: %s", self.spec.name, error)
                    failed = error
                else:
                    self._ways[address] = _Way(address, backend)
        if failed is not None and not self._ways:
            raise failed

    @property
    def trouble(self) -> str:
        return "" if self._alive() else "its workers have gone away"

    def room(self, size: int, before: int) -> Block | None:
        """In the memory of the worker that would be next: `begin` follows the block."""
        alive = self._alive()
        return min(alive).backend.room(size, before) if alive else None

    def begin(self, request: InferRequest, done: Done) -> Abandon:
        way = self._chosen(request)
        sent = _Sent(way, _rows(self.spec, request), done)
        try:
            sent.abandon = way.backend.begin(request, sent.told)
        except BaseException:
            sent.forget()
            raise
        way.last = next(self._turns)
        return sent.leave

    async def submit(self, request: InferRequest) -> AsyncIterator[InferReply]:
        yield await self.infer(request)

    async def infer(self, request: InferRequest) -> InferReply:
        return await answered(self.begin, request)

    async def statistics(self) -> Statistics:
        """Of all workers that are there, added up."""
        asked = [way.backend.statistics() for way in self._ways.values()]
        found = await asyncio.gather(*asked, return_exceptions=True)
        said = [each for each in found if isinstance(each, Statistics)]
        failed = [each for each in found if isinstance(each, BaseException)]
        if failed and not said:
            raise failed[0]
        return added(said)

    @property
    def in_flight(self) -> int:
        return self.held + sum(way.backend.in_flight for way in self._ways.values())

    def close(self, reason: ServeError) -> None:
        ways, self._ways = self._ways, {}
        for way in ways.values():
            way.backend.close(reason)

    def _alive(self) -> list[_Way]:
        return [way for way in self._ways.values() if not way.backend.gone]

    def _chosen(self, request: InferRequest) -> _Way:
        alive = self._alive()
        if not alive:
            raise Unavailable(f"model {self.spec.name!r} is restarting: its workers have gone away")
        if request.schedule is not None and request.schedule.sequence:
            key = f"{request.partition}/{request.schedule.sequence}".encode()
            return max(alive, key=lambda way: _weight(key, way.address))
        if request.block is not None:
            for way in alive:
                if way.backend.holds(request.block):
                    return way
        return min(alive)


def _rows(spec: ModelSpec, request: InferRequest) -> int:
    """As many as the first input says; it is checked later."""
    if not spec.batch.max_batch_size or not request.inputs or not request.inputs[0].shape:
        return 1
    return max(1, request.inputs[0].shape[0])


def _weight(key: bytes, address: str) -> bytes:
    """All gateways choose alike, and a worker that goes takes only its own sequences along."""
    return blake2b(
        key, digest_size=8, key=blake2b(address.encode(), digest_size=32).digest()
    ).digest()


def _lost(spec: ModelSpec) -> Lost:
    return Lost(f"model {spec.name!r} lost this request: its worker went away")


def added(found: Sequence[Statistics]) -> Statistics:
    """The statistics of several workers of one model, as one's."""
    total = Statistics()
    for each in found:
        for name in each.__struct_fields__:
            value = getattr(each, name)
            if name == "last_inference_ms":
                total.last_inference_ms = max(total.last_inference_ms, value)
            elif isinstance(value, Duration):
                getattr(total, name).add(value.ns, value.count)
            elif isinstance(value, dict):
                _add_batches(total.batches, value)
            elif name != "id":
                setattr(total, name, getattr(total, name) + value)
    return total


def _add_batches(total: dict[int, BatchStatistics], more: dict[int, BatchStatistics]) -> None:
    for size, each in more.items():
        into = total.setdefault(size, BatchStatistics(Duration(), Duration(), Duration()))
        for name in each.__struct_fields__:
            took = getattr(each, name)
            getattr(into, name).add(took.ns, took.count)
