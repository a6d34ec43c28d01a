"""The whole server: its ports, its gateways, a worker for each model, its end."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from ds_engines.errors import LoadError
from ds_serve.gateway.config import GatewayConfig
from ds_serve.models import ModelSource
from ds_serve.settings import Settings
from ds_serve.supervisor import cpus, launch, ports
from ds_serve.supervisor.control import Control
from ds_serve.supervisor.gateways import GatewayKeeper
from ds_serve.supervisor.tensor_worker import TensorWorkerKeeper
from ds_serve.supervisor.worker import FAILED, READY, WorkerKeeper
from ds_serve.transport.messages import ModelState, Registry
from ds_serve.worker.config import WorkerConfig

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
        self.sources = tuple(sources)
        self._folder = folder
        self._on_ready = on_ready
        self._held = [
            ports.hold(settings.host, settings.http_port, "--http-port"),
            ports.hold(settings.host, settings.grpc_port, "--grpc-port"),
        ]
        self.http_port, self.grpc_port = (held.getsockname()[1] for held in self._held)
        self._workers: list[WorkerKeeper] = []
        self._gateways: list[GatewayKeeper] = []
        self._ending: asyncio.Future[int] | None = None

    async def run(self) -> int:
        """Serve until a signal comes or no model is left; returns the exit status."""
        loop = asyncio.get_running_loop()
        self._ending = loop.create_future()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._told_to_stop, number)
        control = Control(self._folder / "control.sock")
        await control.open()
        self._make(control)
        tasks = [asyncio.create_task(keeper.run()) for keeper in self._gateways + self._workers]
        for task in tasks:
            task.add_done_callback(self._check_gateway)
        tasks.append(asyncio.create_task(self._announce()))
        try:
            status = await self._ending
            if status == OK:
                log.info("stopping: requests in flight have %g s", self.settings.drain_timeout)
            await self._stop()
        finally:
            for task in tasks:
                task.cancel()
            self._kill()
            control.close()
            for held in self._held:
                held.close()
        return status

    def states(self) -> list[ModelState]:
        return [worker.state for worker in self._workers]

    def _make(self, control: Control) -> None:
        threads = cpus.share(cpus.available(), len(self.sources))
        for index, source in enumerate(self.sources):
            folder = self._folder / str(index)
            folder.mkdir()
            self._workers.append(self._worker(control, source, threads, folder))
        configure = partial(self._gateway_config, control=control.path)
        self._gateways = [
            GatewayKeeper(index, configure, control, self._folder, self._registry)
            for index in range(self.settings.gateways)
        ]

    def _worker(
        self, control: Control, source: ModelSource, threads: int, folder: Path
    ) -> WorkerKeeper:
        hang = self.settings.hang_timeout
        if source.task == "text":
            command = partial(launch.text_command, self.settings, source, threads)
            spec = launch.text_spec(source)
            # Its HTTP client takes long to import, so only servers that have text models do.
            from ds_serve.supervisor.text_worker import TextWorkerKeeper  # noqa: PLC0415

            return TextWorkerKeeper(spec, command, folder, hang, self._changed)

        def configure(identity: str, socket: Path) -> WorkerConfig:
            return launch.worker_config(
                self.settings,
                source,
                threads,
                identity=identity,
                socket=socket,
                control=control.path,
            )

        return TensorWorkerKeeper(source.name, configure, control, folder, hang, self._changed)

    def _gateway_config(self, identity: str, *, control: Path) -> GatewayConfig:
        return launch.gateway_config(
            self.settings,
            identity=identity,
            control=control,
            http_port=self.http_port,
            grpc_port=self.grpc_port,
        )

    def _registry(self) -> Registry:
        return Registry(self.states())

    def _changed(self) -> None:
        """A model's state is another: tell the gateways, and end where no model is left."""
        registry = self._registry()
        for gateway in self._gateways:
            gateway.tell(registry)
        failed = [state for state in registry.models if state.state == FAILED]
        if len(failed) == len(registry.models):
            self._end(FAILURE, "no model is left")
        elif failed and self.settings.exit_on_model_failure:
            self._end(FAILURE, f"model {failed[0].name} has failed (--exit-on-model-failure)")

    async def _announce(self) -> None:
        for gateway in self._gateways:
            await gateway.up.wait()
        for worker in self._workers:
            await worker.settled()
        if any(state.state == READY for state in self.states()):
            self._on_ready(self)

    def _check_gateway(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            return
        error = task.exception()
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
        for worker in self._workers:
            worker.retire()
        await asyncio.gather(*(gateway.stop(grace) for gateway in self._gateways))
        await asyncio.gather(*(worker.stop(1.0) for worker in self._workers))

    def _kill(self) -> None:
        for keeper in self._gateways + self._workers:
            keeper.kill()
