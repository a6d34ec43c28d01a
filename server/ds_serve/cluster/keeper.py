"""The supervisor's side: models that answer where the cluster's replicas are."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path

from ds_engines.errors import LoadError, ServeError
from ds_engines.spec import ModelSpec
from ds_serve import child
from ds_serve.cluster import plan
from ds_serve.cluster.told import Told, decode
from ds_serve.edge.keeper import ask
from ds_serve.models import ModelSource
from ds_serve.settings import Settings
from ds_serve.supervisor import launch
from ds_serve.supervisor.worker import FAILED, LOADING, READY, RESTARTING, IdleKeeper, Keeper
from ds_serve.upstream import Upstream

log = logging.getLogger(__name__)

AGAIN = 2.0
"""Seconds to the next life of the process that talks to Ray."""

SECONDS = 5.0
"""How long a replica may take to say what its model is."""

_serials = count(1)


class Cluster:
    """The process that talks to Ray, and what it says. The models answer while it is away, at the
    addresses that were known.
    """

    def __init__(self, settings: Settings, sources: Sequence[ModelSource], folder: Path) -> None:
        self._settings = settings
        self._sources = sources
        self._folder = folder
        self._keepers: dict[str, ClusterKeeper] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._heard = False

    def has(self, source: ModelSource) -> bool:
        return plan.on_cluster(source)

    def keeper(self, source: ModelSource, changed: Callable[[], None]) -> Keeper:
        text = launch.text_spec(source) if source.task == "text" else None
        made = self._keepers[source.name] = ClusterKeeper(source, text, changed)
        return made

    async def run(self) -> None:
        """For ever. Raises LoadError where there is no such cluster, and never was."""
        file = self._folder / "cluster.json"
        failure = self._folder / "cluster.failure"
        child.write(self._config(), file)
        while True:
            failure.unlink(missing_ok=True)
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "ds_serve.cluster", str(file)),
                env={**os.environ, child.FAILURE_FILE: str(failure)},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
            await self._listen(self._process)
            status = await self._process.wait()
            said = failure.read_text().strip() if failure.exists() else f"it ended with {status}"
            if status == child.PERMANENT and not self._heard:
                raise LoadError(said)
            log.error("the link to Ray is lost: %s; trying again", said)
            for keeper in self._keepers.values():
                keeper.missing(said)
            await asyncio.sleep(AGAIN)

    def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None, "it is a pipe"
        while line := await process.stdout.readline():
            told = decode(line)
            self._heard = True
            if told.name in self._keepers:
                await self._keepers[told.name].hear(told)

    def _config(self) -> plan.AgentConfig:
        polls = self._settings.model_control_mode == "poll"
        return plan.AgentConfig(
            identity="cluster",
            control=self._folder,
            parent_pid=os.getpid(),
            logs=self._settings.logs,
            address=self._settings.cluster,
            jobs=plan.jobs(self._settings, self._sources),
            poll=float(self._settings.repository_poll_secs) if polls else 0.0,
        )


class ClusterKeeper(IdleKeeper):
    """A model that is ready while some replica is. `text`: its spec, which a tensor model's
    replicas tell.
    """

    def __init__(
        self, source: ModelSource, text: ModelSpec | None, on_change: Callable[[], None]
    ) -> None:
        super().__init__(source.name, source.version, on_change)
        self._text = text
        self._asked = asyncio.Event()

    async def settled(self) -> None:
        """Wait until some replica answers, or Ray has given up."""
        await self._asked.wait()

    def kill(self) -> None:
        super().kill()
        self._asked.set()

    def missing(self, reason: str) -> None:
        """Nothing is known. What answers goes on."""
        if self.state.state != READY and not self._stopping:
            self._become(LOADING, reason)

    async def hear(self, told: Told) -> None:
        """The replicas are others now."""
        if self._stopping:
            return
        if not told.addresses:
            self._become(*self._absent(told))
            if told.failed:
                log.error("model %s has failed: %s", self.name, told.reason)
                self._asked.set()
            return
        try:
            async with asyncio.timeout(SECONDS):
                spec: ModelSpec | None = await self._spec(told.addresses)
        except (ServeError, TimeoutError) as error:
            log.warning("model %s: its replicas do not say what it is: %s", self.name, error)
            if self.state.state != READY:
                return
            spec = self.state.spec or self._text
        self._move(told.addresses, spec)

    def _move(self, addresses: Sequence[str], spec: ModelSpec | None) -> None:
        if spec != self.state.spec or self.state.state != READY:
            # Another address is another model to the gateways, which check requests anew.
            self.state.address = f"cluster-{self.name}-{next(_serials)}"
        self.state.spec = spec
        self.state.upstream = Upstream(",".join(addresses), self.name)
        self._asked.set()
        self._become(READY)

    def _absent(self, told: Told) -> tuple[str, str]:
        if told.failed:
            return FAILED, told.reason
        reason = told.reason or "the cluster has no replica of it yet"
        return (LOADING if self.state.state == LOADING else RESTARTING), reason

    async def _spec(self, addresses: Sequence[str]) -> ModelSpec:
        """Of a tensor model, as the newest answer says: replicas may be replaced one by one."""
        if self._text is not None:
            return self._text
        upstream = Upstream(",".join(addresses), self.name)
        return await ask(upstream, self.name, self.state.version)
