"""The keepers of text models: one for each replica, vLLM's or ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ds_serve.logs import LogSettings
from ds_serve.models import ModelSource
from ds_serve.settings import Settings
from ds_serve.supervisor import launch
from ds_serve.supervisor.replicas import ReplicasKeeper
from ds_serve.supervisor.text_worker import TextWorkerKeeper
from ds_serve.supervisor.vllm_worker import VllmKeeper
from ds_serve.supervisor.worker import Keeper
from ds_serve.text_models import VLLM
from ds_serve.vllm.guard import Job
from ds_serve.vllm.options import options

Changed = Callable[[], None]


class Hiring:
    """Makes the keepers of one model. `folder` is its own; `logs` gives the settings as they are
    now; `threads` are for all replicas together.
    """

    def __init__(
        self,
        settings: Settings,
        source: ModelSource,
        folder: Path,
        threads: int,
        logs: Callable[[], LogSettings],
    ) -> None:
        self._settings = settings
        self._source = source
        self._folder = folder
        self._options = options(settings, source)
        self._threads = max(1, threads // self._options.replicas)
        self._logs = logs
        self._spec = launch.text_spec(source)

    def hire(self, changed: Changed) -> Keeper:
        one = self._vllm if self._source.engine == VLLM else self._ours
        if self._options.replicas == 1:
            return one(0, changed)
        return ReplicasKeeper(self._options.replicas, one, changed)

    def _vllm(self, number: int, changed: Changed) -> Keeper:
        def job(socket: Path, progress: Path) -> Job:
            return launch.vllm_job(
                self._settings, self._source, number, self._logs(), socket, progress
            )

        return VllmKeeper(
            self._spec,
            job,
            self._home(number),
            self._settings.hang_timeout,
            changed,
        )

    def _ours(self, number: int, changed: Changed) -> Keeper:
        def command(socket: Path) -> list[str]:
            return launch.text_command(
                self._settings, self._source, self._threads, self._logs(), socket
            )

        home, hang = self._home(number), self._settings.hang_timeout
        return TextWorkerKeeper(self._spec, command, home, hang, changed)

    def _home(self, number: int) -> Path:
        home = self._folder / f"r{number}"
        home.mkdir()
        return home
