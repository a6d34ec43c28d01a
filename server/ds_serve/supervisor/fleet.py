"""All workers: one for each version of each model, and how one takes over from another."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from ds_engines.errors import LoadError
from ds_serve import metrics
from ds_serve.models import ModelSource
from ds_serve.supervisor.gateways import Gateways
from ds_serve.supervisor.worker import FAILED, Keeper
from ds_serve.transport.messages import ModelState

log = logging.getLogger(__name__)

TOLD_WITHIN = 5.0
"""Seconds that the gateways get to take a change over, before whoever made it is told."""

LAST_SECONDS = 1.0
"""What a worker gets to end once its last request is answered."""

NOT_THERE = float("nan")
"""What ds_model_ready says of a version that is not to be served any more: no alert is due."""

Changed = Callable[[], None]
Hire = Callable[[ModelSource, Changed], Keeper]


class Served(NamedTuple):
    source: ModelSource
    keeper: Keeper


class Fleet:
    """Which model is served in which versions.

    `hire` makes a worker's keeper. `drain`: seconds that a worker which is to go gets for the
    requests that it has. `on_change` is called whenever `states` are others, `on_end` with each
    task that has ended.
    """

    def __init__(
        self,
        hire: Hire,
        gateways: Gateways,
        drain: float,
        on_change: Changed,
        on_end: Callable[[asyncio.Task[None]], None],
    ) -> None:
        self.planned = 0
        """How many workers there will be at the start."""
        self._hire = hire
        self._gateways = gateways
        self._drain = drain
        self._on_change = on_change
        self._on_end = on_end
        self._served: dict[str, dict[str, Served]] = {}
        self._refused: dict[str, ModelState] = {}
        self._coming: set[Keeper] = set()
        self._going: set[Keeper] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._told: set[tuple[str, str]] = set()

    def states(self) -> list[ModelState]:
        """What the gateways must know; models that could not even be read come last."""
        return [one.keeper.state for one in self._all()] + list(self._refused.values())

    def going(self) -> list[ModelState]:
        """Those that finish their last requests."""
        return [keeper.state for keeper in self._going]

    def keepers(self) -> list[Keeper]:
        """Of all workers, also those that are on their way in or out."""
        return [one.keeper for one in self._all()] + [*self._coming, *self._going]

    def sources(self) -> list[ModelSource]:
        """What is served now."""
        return [one.source for one in self._all()]

    @property
    def size(self) -> int:
        """Workers that share the processors."""
        return max(self.planned, sum(map(has_worker, self.sources())))

    def serves(self, name: str) -> bool:
        """Whether some version of that model answers."""
        return any(one.keeper.ready for one in self._served.get(name, {}).values())

    def knows(self, name: str) -> bool:
        """Whether that model is served, or was to be and failed."""
        return name in self._served or name in self._refused

    def refuse(self, name: str, reason: str, *, required: bool) -> None:
        """A model that is wanted, and whose folder or configuration is wrong."""
        self._refused[name] = ModelState(name, FAILED, reason, version="", required=required)
        self._changed()

    def begin(self, name: str, sources: Sequence[ModelSource], *, required: bool) -> None:
        """Load a model that no version answers of; `required`: see ModelState."""
        self._refused.pop(name, None)
        before = self._served.get(name, {})
        self._served[name] = {one.version: Served(one, self._start(one)) for one in sources}
        some = not all(source.refusal for source in sources)
        for one in self._served[name].values():
            one.keeper.state.required = required and not (some and one.source.refusal)
        self._changed()
        self._dismiss(before.values())

    async def load(
        self, name: str, sources: Sequence[ModelSource], kept: Sequence[str] = ()
    ) -> None:
        """Serve a model in the versions `kept`, which go on as they are, and those of `sources`.

        Where it is served already, they are loaded beside the old ones and take over once all of
        them are ready. Raises LoadError where one cannot be loaded: then the old ones go on; and,
        once the others are served, where some are refused.
        """
        if self.serves(name):
            await self._replace(name, sources, kept)
        else:
            self.begin(name, sources, required=False)
            await _ready(self._served[name].values())
        await self._gateways.know(TOLD_WITHIN)
        served = self._served.get(name, {}).values()
        versions = [one.source.version for one in served if not one.source.refusal]
        if versions:
            log.info("model %s: loaded, and served in the versions %s", name, ", ".join(versions))
        _raise_refusals(sources, versions)

    async def unload(self, name: str) -> None:
        """Serve a model no more. Requests that it has are finished, within the drain time."""
        self._refused.pop(name, None)
        gone = self._served.pop(name, {})
        self._changed()
        self._dismiss(gone.values())
        await self._gateways.know(TOLD_WITHIN)

    async def settled(self) -> None:
        """Wait until every model is ready or has failed."""
        for keeper in self.keepers():
            await keeper.settled()

    def close(self) -> None:
        """End all workers now."""
        for keeper in self.keepers():
            keeper.kill()
        for task in self._tasks:
            task.cancel()

    def _all(self) -> Iterator[Served]:
        return (one for each in self._served.values() for one in each.values())

    async def _replace(
        self, name: str, sources: Sequence[ModelSource], kept: Sequence[str]
    ) -> None:
        self._require_gone(name, sources)
        coming = {source.version: Served(source, self._start(source)) for source in sources}
        keepers = [one.keeper for one in coming.values()]
        self._coming.update(keepers)
        try:
            await _ready(coming.values())
        except BaseException:
            for keeper in keepers:
                keeper.kill()
            await self._clean(sources)
            raise
        finally:
            self._coming.difference_update(keepers)
        before = self._served[name]
        after = {version: before[version] for version in kept} | coming
        self._served[name] = after
        self._changed()
        self._dismiss(one for version, one in before.items() if after.get(version) is not one)

    def _require_gone(self, name: str, sources: Sequence[ModelSource]) -> None:
        """Raise LoadError where a version is refused that is served still: what it has loaded is
        not what lies there now.
        """
        for source in sources:
            old = self._served[name].get(source.version)
            if source.refusal and old is not None and old.keeper.ready:
                raise LoadError(f"version {source.version}: {source.refusal}; it goes on as it was")

    def _start(self, source: ModelSource) -> Keeper:
        keeper = self._hire(source, self._changed)
        self._keep(asyncio.create_task(keeper.run()))
        return keeper

    def _dismiss(self, gone: Iterable[Served]) -> None:
        for one in gone:
            one.keeper.retire()
            self._going.add(one.keeper)
            self._keep(asyncio.create_task(self._see_off(one)))

    async def _see_off(self, one: Served) -> None:
        """End a worker that gets no more requests, once it has answered those that it has."""
        keeper = one.keeper
        if keeper.ready:
            await self._gateways.leave(keeper.state.address, self._drain)
            await keeper.stop(LAST_SECONDS)
        else:
            keeper.kill()
        self._going.discard(keeper)
        await self._clean([one.source])
        log.info("model %s version %s: its worker has gone", keeper.name, keeper.state.version)

    async def _clean(self, sources: Iterable[ModelSource]) -> None:
        """Remove the files that came with models, and that no other version needs."""
        used = {source.scratch for source in self.sources()} | {None}
        for scratch in {source.scratch for source in sources} - used:
            assert scratch is not None
            await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(self._on_end)

    def _changed(self) -> None:
        for keeper in self.keepers():
            keeper.look()
        ready = {(s.name, s.version): s.state == "ready" for s in self.states()}
        for key in self._told - ready.keys():
            metrics.model_ready.labels(*key).set(NOT_THERE)
        for one in self._all():
            one.keeper.state.required |= one.keeper.ready
        for key, is_ready in ready.items():
            metrics.model_ready.labels(*key).set(is_ready)
        self._told = set(ready)
        self._on_change()


def has_worker(source: ModelSource) -> bool:
    """Whether a process runs it."""
    return source.ensemble is None and source.upstream is None and not source.refusal


def _raise_refusals(sources: Iterable[ModelSource], served: Iterable[str]) -> None:
    refused = [
        f"version {source.version}: {source.refusal}" for source in sources if source.refusal
    ]
    if refused:
        others = " and ".join(f"version {version}" for version in served)
        raise LoadError(f"{'; '.join(refused)}; served is {others or 'no version'}")


async def _ready(served: Iterable[Served]) -> None:
    """Wait until all have settled. Raises LoadError naming each that is not ready, and why, those
    apart that are refused.
    """
    keepers = [one.keeper for one in served if not one.source.refusal]
    for keeper in keepers:
        await keeper.settled()
    failed = [keeper.state for keeper in keepers if not keeper.ready]
    if failed:
        raise LoadError("; ".join(f"version {one.version}: {one.reason}" for one in failed))
