"""Which models are served: at the start, at a client's wish, and as the repositories change."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from weakref import WeakValueDictionary

import msgspec

from ds_engines.errors import (
    ConfigError,
    InvalidRequest,
    LoadError,
    NotFound,
    ServeError,
    Unavailable,
)
from ds_serve.models import ModelSource
from ds_serve.repository import upload
from ds_serve.repository.folder import Print, read_model
from ds_serve.repository.index import index
from ds_serve.repository.library import Library
from ds_serve.settings import Settings
from ds_serve.supervisor import launch
from ds_serve.supervisor.fleet import Fleet, has_worker
from ds_serve.transport.orders import IndexEntry

log = logging.getLogger(__name__)

ALL = "*"
EXPLICIT, POLL = "explicit", "poll"


class Manager:
    """Loads and unloads the models of a library, one change to a model at a time.

    `home`: a private folder for what clients send.
    """

    def __init__(self, settings: Settings, library: Library, fleet: Fleet, home: Path) -> None:
        self._settings = settings
        self._mode = settings.model_control_mode
        self._library = library
        self._fleet = fleet
        self._home = home
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._unloaded: dict[str, list[str]] = {}
        self._prints: dict[str, Print | None] = {}

    @property
    def open_ended(self) -> bool:
        """Whether models may come while the server runs, so that it goes on without any."""
        return self._mode in (EXPLICIT, POLL)

    async def start(self) -> None:
        """Begin to load what is to be served from the start."""
        found: dict[str, list[ModelSource]] = {}
        names = await asyncio.to_thread(self._first)
        for name in names:
            try:
                self._prints[name] = await asyncio.to_thread(self._print, name)
                found[name] = await self._read(name)
                if self._mode == EXPLICIT:
                    names += [each for each in members(found[name]) if each not in names]
            except (ServeError, OSError) as error:
                log.error("model %s has failed: %s", name, error)
                self._fleet.refuse(name, str(error), required=True)
        self._fleet.planned = sum(has_worker(one) for each in found.values() for one in each)
        for name, sources in found.items():
            self._fleet.begin(name, sources, required=True)
        self._fleet.planned = 0

    async def index(self, ready: bool) -> list[IndexEntry]:
        """Every model, or only those that are ready."""
        known = await asyncio.to_thread(self._library.names)
        return index(self._fleet.states(), self._fleet.going(), known, self._unloaded, ready)

    async def load(
        self, name: str, config: str | None = None, files: Mapping[str, bytes] | None = None
    ) -> None:
        """Load a model, or load it anew beside the old one. Raises why it is not served so."""
        self._require_explicit()
        async with self._lock(name):
            try:
                sources = await self._sent(name, config, files or {})
                await self._load_members(name, sources)
                await self._fleet.load(name, sources)
            except (ServeError, OSError) as error:
                await self._note(name, str(error))
                kind = type(error) if isinstance(error, ServeError) else LoadError
                raise kind(f"failed to load {name!r}: {error}") from None
            self._unloaded.pop(name, None)

    async def _note(self, name: str, reason: str) -> None:
        """For the index: why a model of the repository could not be loaded."""
        served = any(source.name == name for source in self._fleet.sources())
        if not served and name in await asyncio.to_thread(self._library.names):
            self._fleet.refuse(name, reason, required=False)

    async def _load_members(self, name: str, sources: Sequence[ModelSource]) -> None:
        """Load those models of an ensemble, and of ensembles in it, that do not answer yet."""
        names = await self._inner(name, sources)
        for member in reversed(names):
            if not self._fleet.serves(member):
                await self.load(member)

    async def _inner(self, name: str, sources: Sequence[ModelSource]) -> list[str]:
        """All models below an ensemble, each before those that it is made of.

        Raises ConfigError for one that contains itself: whoever loads it would wait for itself.
        """
        found: list[str] = []
        due: list[tuple[str, tuple[str, ...]]] = [(member, (name,)) for member in members(sources)]
        while due:
            member, path = due.pop()
            if member in path:
                raise ConfigError(f"the ensemble contains itself: {' -> '.join((*path, member))}")
            found = [*(each for each in found if each != member), member]
            if not self._fleet.serves(member):
                inner = members(await self._read(member))
                due += [(each, (*path, member)) for each in inner]
        return found

    async def unload(self, name: str, dependents: bool = False) -> None:
        """Serve a model no more; of an ensemble with `dependents` also those of its models that
        no other ensemble needs. Raises NotFound for one that is not known.
        """
        needed = members(source for source in self._fleet.sources() if source.name == name)
        await self._unload(name)
        for member in needed if dependents else ():
            if self._fleet.knows(member) and member not in members(self._fleet.sources()):
                await self.unload(member, dependents)

    async def _unload(self, name: str) -> None:
        self._require_explicit()
        async with self._lock(name):
            versions = [state.version for state in self._fleet.states() if state.name == name]
            if not versions and name not in await asyncio.to_thread(self._library.names):
                raise NotFound(f"failed to unload {name!r}: there is no such model")
            if versions:
                self._unloaded[name] = versions
                await self._fleet.unload(name)

    async def poll(self) -> None:
        """Look at the repositories now and then, and do as they say; until cancelled."""
        while self._mode == POLL:
            await asyncio.sleep(self._settings.repository_poll_secs)
            try:
                names = await asyncio.to_thread(self._library.names)
            except (OSError, LoadError) as error:
                log.error("the model repositories cannot be read: %s", error)
                continue
            gone = [name for name in self._prints if name not in names]
            await asyncio.gather(*map(self._remove, gone), *map(self._look, names))

    async def _look(self, name: str) -> None:
        """Load what is new or changed of a model. What fails is tried again when it changes."""
        try:
            now = await asyncio.to_thread(self._print, name)
            before = self._prints.get(name)
            if name in self._prints and now == before:
                return
            async with self._lock(name):
                self._prints[name] = now
                sources = await self._read(name)
                kept = [s.version for s in sources if self._as_it_was(s, before, now)]
                fresh = [source for source in sources if source.version not in kept]
                log.info("model %s: its folder has changed", name)
                await self._fleet.load(name, fresh, kept)
                self._unloaded.pop(name, None)
        except (ServeError, OSError) as error:
            log.error("model %s: failed to load: %s", name, error)
            if not self._fleet.knows(name):
                self._fleet.refuse(name, str(error), required=False)

    async def _remove(self, name: str) -> None:
        async with self._lock(name):
            del self._prints[name]
            log.info("model %s: its folder is gone", name)
            await self._fleet.unload(name)

    def _as_it_was(self, source: ModelSource, before: Print | None, now: Print | None) -> bool:
        """Whether a version is served already from the files that are there."""
        if before is None or now is None or before.get("") != now.get(""):
            return False
        served = {(one.name, one.version) for one in self._fleet.sources()}
        same = before.get(source.version) == now.get(source.version)
        return same and (source.name, source.version) in served and self._fleet.serves(source.name)

    def _first(self) -> list[str]:
        """Names of the models that are served from the start."""
        wanted: Sequence[str] = self._settings.load_model
        if self._mode != EXPLICIT or ALL in wanted:
            return self._library.names()
        return list(dict.fromkeys([*self._library.given(), *wanted]))

    def _print(self, name: str) -> Print | None:
        return self._library.fingerprint(name) if self._mode == POLL else None

    async def _read(self, name: str, config: Path | None = None) -> list[ModelSource]:
        """The versions to serve. Raises ServeError, OSError."""
        sources = await asyncio.to_thread(self._library.read, name, config)
        for source in sources:
            launch.check_source(self._settings, source)
        return sources

    async def _sent(
        self, name: str, config: str | None, files: Mapping[str, bytes]
    ) -> list[ModelSource]:
        """The versions to serve, out of what a client has sent. Raises ServeError, OSError."""
        if config is None and not files:
            return await self._read(name)
        scratch = await asyncio.to_thread(upload.stage, self._home, config, files)
        try:
            sources = await self._staged(name, scratch, bool(files))
        except BaseException as error:
            shutil.rmtree(scratch, ignore_errors=True)
            if isinstance(error, ConfigError):
                raise InvalidRequest(str(error).replace(f"{scratch}/", "")) from None
            raise
        return [msgspec.structs.replace(source, scratch=scratch) for source in sources]

    async def _staged(self, name: str, scratch: Path, whole: bool) -> list[ModelSource]:
        if not whole:
            return await self._read(name, scratch / "config.pbtxt")
        # What a client has sent is never trusted with code of its own.
        wish = self._settings.wish._replace(trust=False)
        sources = await asyncio.to_thread(read_model, scratch, name, wish=wish)
        for source in sources:
            launch.check_source(self._settings, source)
        return sources

    def _lock(self, name: str) -> asyncio.Lock:
        """Held during a change to that model."""
        return self._locks.setdefault(name, asyncio.Lock())

    def _require_explicit(self) -> None:
        if self._mode == EXPLICIT:
            return
        why = "if polling is enabled"
        if self._mode != POLL:
            why = f"with --model-control-mode={self._mode}; start the server with {EXPLICIT}"
        error = Unavailable(f"explicit model load / unload is not allowed {why}")
        error.retry_after = None
        raise error


def members(sources: Iterable[ModelSource]) -> list[str]:
    """Names of the models of which ensembles are made."""
    specs = [source.ensemble for source in sources if source.ensemble is not None]
    return list(dict.fromkeys(step.model for spec in specs for step in spec.steps))
