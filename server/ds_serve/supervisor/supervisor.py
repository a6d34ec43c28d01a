"""The whole server: its ports, its gateways, a worker for each model, its end."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ds_engines.errors import LoadError
from ds_serve import logs
from ds_serve.edge import pushing
from ds_serve.gateway.config import GatewayConfig
from ds_serve.logs import LogSettings
from ds_serve.models import ModelSource
from ds_serve.repository import admission
from ds_serve.repository.library import Library
from ds_serve.settings import Settings
from ds_serve.supervisor import cpus, launch, meters, ports
from ds_serve.supervisor.control import Control
from ds_serve.supervisor.desk import Desk
from ds_serve.supervisor.ensemble import EnsembleKeeper
from ds_serve.supervisor.fleet import Changed, Fleet
from ds_serve.supervisor.gateways import BatchesKeeper, GatewayKeeper, Gateways
from ds_serve.supervisor.manager import Manager
from ds_serve.supervisor.replicas import ReplicasKeeper
from ds_serve.supervisor.tensor_worker import TensorWorkerKeeper
from ds_serve.supervisor.tunables import Tunables
from ds_serve.supervisor.upstream import UpstreamKeeper
from ds_serve.supervisor.worker import FAILED, READY, Keeper, RefusedKeeper
from ds_serve.transport.messages import ModelState, Tuning
from ds_serve.worker.config import WorkerConfig

if TYPE_CHECKING:
    from ds_serve.cluster.keeper import Cluster

log = logging.getLogger(__name__)

OK, FAILURE = 0, 1

OnReady = Callable[["Supervisor"], None]


class Supervisor:
    """Construct it, then `run` it once. Raises ConfigError where a port cannot be had.

    `folder`: a private folder for sockets and configs; it must exist.
    """

    def __init__(
        self, settings: Settings, sources: Sequence[ModelSource], folder: Path, on_ready: OnReady
    ) -> None:
        launch.check(settings, sources)
        self.settings = settings
        refusal = admission.never if settings.allow_unverified else admission.Remembered()
        self._library = Library(sources, settings.model_repository, refusal, settings.wish)
        self._folder = folder
        self._on_ready = on_ready
        self._held = [
            ports.hold(settings.host, settings.http_port, "--http-port"),
            ports.hold(settings.host, settings.grpc_port, "--grpc-port"),
        ]
        self.http_port, self.grpc_port = (held.getsockname()[1] for held in self._held)
        if settings.metrics_port:
            self._held.append(ports.hold(settings.host, settings.metrics_port, "--metrics-port"))
        self._control = Control(folder / "control.sock")
        self._gateways = Gateways(self.states)
        self._fleet = Fleet(
            self._hire, self._gateways, settings.drain_timeout, self._changed, self._check
        )
        self._manager = Manager(settings, self._library, self._fleet, folder / "uploads")
        self._count = cpus.gateways(settings.gateways)
        self._tunables = Tunables(
            settings.logs, settings.tracing, self._count, self._fleet.knows, self._tune
        )
        self._desk = Desk(self._control, self._manager, self._tunables)
        self._serials = count()
        self._cluster = _cluster(settings, sources, folder)
        self._started = self._announced = False
        self._ending: asyncio.Future[int] | None = None

    async def run(self) -> int:
        """Serve until a signal comes or no model is left; returns the exit status."""
        loop = asyncio.get_running_loop()
        self._ending = loop.create_future()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._told_to_stop, number)
        self._control.greeting = self._tunables.tuning()
        await self._control.open()
        tasks = [asyncio.create_task(self._live())]
        tasks[0].add_done_callback(self._check)
        try:
            status = await self._ending
            if status == OK:
                log.info("stopping: requests in flight have %g s", self.settings.drain_timeout)
            await self._stop()
        finally:
            for task in tasks:
                task.cancel()
            self._desk.close()
            self._kill()
            self._control.close()
            for held in self._held:
                held.close()
        return status

    def states(self) -> list[ModelState]:
        """The models as they are now."""
        return self._fleet.states()

    def why(self) -> dict[str, str]:
        """Of each model that is served, how: a sentence for a person."""
        return {one.name: one.why for one in self._fleet.sources() if not one.refusal}

    async def _live(self) -> None:
        """All that goes on until the server ends. Models come first: a gateway that joins others
        must know them from its first request on.
        """
        await self._manager.start()
        self._started = True
        self._gateways.keepers = [self._gateway(index) for index in range(self._count)]
        if self.settings.files:
            self._gateways.keepers.append(self._gateway(0, BatchesKeeper))
        self._changed()
        async with asyncio.TaskGroup() as group:
            for keeper in self._gateways.keepers:
                group.create_task(keeper.run())
            group.create_task(self._announce())
            group.create_task(self._manager.poll())
            group.create_task(meters.measure())
            group.create_task(pushing.keep_pushing(self.settings))
            if self._cluster is not None:
                group.create_task(self._cluster.run())

    def _gateway(self, index: int, kind: type[GatewayKeeper] = GatewayKeeper) -> GatewayKeeper:
        return kind(
            index,
            self._gateway_config,
            self._control,
            self._folder,
            self._gateways.registry,
            self._gateways.hear,
            self._desk.take,
        )

    def _hire(self, source: ModelSource, changed: Changed) -> Keeper:
        if source.refusal:
            return RefusedKeeper(source.name, source.version, source.refusal, changed)
        if source.ensemble is not None:
            return EnsembleKeeper(source.ensemble, self.states, changed)
        if self._cluster is not None and self._cluster.has(source):
            return self._cluster.keeper(source, changed)
        if source.upstream is not None:
            return self._ask_elsewhere(source, changed)
        folder = self._folder / str(next(self._serials))
        folder.mkdir()
        threads = cpus.share(cpus.available(), self._fleet.size)
        if source.task == "text":
            # Their HTTP client takes long to import, so only servers that have text models do.
            from ds_serve.supervisor.texts import Hiring  # noqa: PLC0415

            hiring = Hiring(self.settings, source, folder, threads, self._log_settings)
            return hiring.hire(changed)

        return self._place(source, folder, threads, changed)

    def _place(self, source: ModelSource, folder: Path, threads: int, changed: Changed) -> Keeper:
        """A worker for each device that the model is to be on."""
        devices = launch.devices_of(self.settings, source)
        threads = max(1, threads // len(devices))

        def one(number: int, changed: Changed) -> Keeper:
            def configure(identity: str, socket: Path) -> WorkerConfig:
                made = launch.worker_config(
                    self.settings,
                    source,
                    threads,
                    identity=identity,
                    socket=socket,
                    control=self._control.path,
                    logs=self._tunables.logs,
                    device=devices[number],
                )
                return msgspec.structs.replace(made, alone=len(devices) == 1)

            home = folder if number == 0 else folder.with_name(f"{folder.name}.{number}")
            home.mkdir(exist_ok=True)
            return TensorWorkerKeeper(
                source.name, source.version, configure, self._control, home,
                self.settings.hang_timeout, changed, gateways=self._gateways,
            )  # fmt: skip

        if len(devices) == 1:
            return one(0, changed)
        return ReplicasKeeper(len(devices), one, changed, together=True)

    def _ask_elsewhere(self, source: ModelSource, changed: Changed) -> Keeper:
        where = launch.upstream_of(self.settings, source)
        if source.task == "tensor":
            # As above: its HTTP client takes long to import.
            from ds_serve.edge.keeper import TensorUpstreamKeeper  # noqa: PLC0415

            probe = self.settings.upstream_probe
            return TensorUpstreamKeeper(source.name, source.version, where, probe, changed)
        return UpstreamKeeper(launch.text_spec(source), where, changed)

    def _log_settings(self) -> LogSettings:
        return self._tunables.logs

    def _gateway_config(self, identity: str) -> GatewayConfig:
        return launch.gateway_config(
            self.settings,
            identity=identity,
            control=self._control.path,
            logs=self._tunables.logs,
            http_port=self.http_port,
            grpc_port=self.grpc_port,
        )

    def _tune(self, tuning: Tuning) -> None:
        """Settings have changed: tell everybody."""
        logs.apply(tuning.logs, "supervisor")
        self._control.greeting = tuning
        self._control.broadcast(tuning)

    def _changed(self) -> None:
        """A model's state is another: tell the gateways, and end where no model is left."""
        self._gateways.tell()
        if not self._started:
            return
        states = [state for state in self.states() if state.required]
        failed = [state for state in states if state.state == FAILED]
        # A model that is not required may still come, as those of other servers.
        gone = all(state.state == FAILED for state in self.states())
        if gone and not self._manager.open_ended:
            empty = "there is no model to serve: the model repositories are empty"
            self._end(FAILURE, "no model is left" if states else empty)
        elif failed and self.settings.exit_on_model_failure:
            self._end(FAILURE, f"model {failed[0].name} has failed (--exit-on-model-failure)")
        elif failed and self.settings.exit_on_error and not self._announced:
            self._end(FAILURE, f"model {failed[0].name} has failed (--exit-on-error)")

    async def _announce(self) -> None:
        for gateway in self._gateways.keepers:
            await gateway.up.wait()
        await self._fleet.settled()
        self._announced = True
        if self._manager.open_ended or any(state.state == READY for state in self.states()):
            self._on_ready(self)

    def _check(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if isinstance(error, LoadError):
            self._end(FAILURE, str(error))
        elif error is not None:
            log.error("the supervisor failed", exc_info=error)
            self._end(FAILURE, "the supervisor failed")

    def _told_to_stop(self, number: signal.Signals) -> None:
        if self._ending is not None and self._ending.done():
            log.warning("%s again: stopping at once", signal.Signals(number).name)
            self._kill()
        self._end(OK, f"{signal.Signals(number).name} received")

    def _end(self, status: int, why: str) -> None:
        if self._ending is not None and not self._ending.done():
            log.log(logging.ERROR if status else logging.INFO, "%s", why)
            self._ending.set_result(status)

    async def _stop(self) -> None:
        grace = self.settings.drain_timeout
        workers = self._fleet.keepers()
        for worker in workers:
            worker.retire()
        await asyncio.gather(*(gateway.stop(grace) for gateway in self._gateways.keepers))
        await asyncio.gather(*(worker.stop(1.0) for worker in workers))

    def _kill(self) -> None:
        for gateway in self._gateways.keepers:
            gateway.kill()
        self._fleet.close()
        if self._cluster is not None:
            self._cluster.kill()


def _cluster(settings: Settings, sources: Sequence[ModelSource], folder: Path) -> Cluster | None:
    """Where the models run, if that is not here."""
    if not settings.cluster:
        return None
    # As above: what it needs takes long to import.
    from ds_serve.cluster.keeper import Cluster  # noqa: PLC0415

    return Cluster(settings, sources, folder)
