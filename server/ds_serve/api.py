"""The server from Python."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ds_engines.errors import ConfigError, EngineFailure
from ds_serve import logs, run_folder
from ds_serve.settings import Settings

if TYPE_CHECKING:
    from ds_serve.models import ModelSource
    from ds_serve.supervisor.supervisor import Supervisor

LISTS = (
    *("model_repository", "load_model", "upstream_key", "fallback", "escalate", "lora"),
    *("cluster_resources", "vllm_args"),
)
"""Settings that are several strings; one may stand alone."""

OnReady = Callable[["Supervisor"], None]


class InferenceServer:
    """A server for one model or several; every setting of the command line is an argument.

    `model_path`: a path or catalogue name, or a list of them, each optionally `NAME=VALUE`; it
    may be left out where `model_repository` names folders of models.
    `batch_size`: the largest batch that requests are joined into.
    `quantization`: a recipe of `ds-quantize`, with data: paths as `calibration` and `evaluation`.
    Raises ConfigError for a model or setting that cannot be, LoadError for a failed download.
    """

    def __init__(
        self,
        model_path: str | Path | Sequence[str | Path] = (),
        device: str = "auto",
        batch_size: int | None = None,
        **settings: Any,
    ) -> None:
        paths = [model_path] if isinstance(model_path, str | Path) else list(model_path)
        if batch_size is not None:
            settings["max_batch_size"] = batch_size
        for name in LISTS:
            if name in settings:
                settings[name] = _strings(settings[name])
        for name in ("quantization", "calibration", "evaluation", "vllm_python", "files"):
            if isinstance(settings.get(name), Path):
                settings[name] = str(settings[name])
        made = _settings({**settings, "device": device})
        self._settings, self._sources = plan(made, [str(path) for path in paths])

    def run(
        self, host: str = "127.0.0.1", port: int | None = None, grpc_port: int | None = None
    ) -> None:
        """Serve until SIGINT or SIGTERM; call it from the main thread.

        Raises ConfigError where a port cannot be had, EngineFailure where no model can be served.
        """
        changes: dict[str, Any] = {"host": host}
        if port is not None:
            changes["http_port"] = port
        if grpc_port is not None:
            changes["grpc_port"] = grpc_port
        settings = msgspec.structs.replace(self._settings, **changes)
        logs.configure(settings.log_format, settings.log_level, "supervisor")
        if serve(settings, self._sources) != 0:
            raise EngineFailure("the server ended because it had no model to serve; see its log")


def plan(settings: Settings, models: Sequence[str]) -> tuple[Settings, list[ModelSource]]:
    """What `--model` arguments mean, fetched and quantized where need be, with progress on stderr.

    Those that are repositories are added to the settings'.
    """
    if settings.cluster:
        from ds_serve.cluster import plan as cluster  # noqa: PLC0415

        return settings, cluster.sources(settings, models)
    from ds_serve import catalogue, quantization, text_models  # noqa: PLC0415
    from ds_serve import models as known  # noqa: PLC0415
    from ds_serve.catalogue.progress import progress_on  # noqa: PLC0415

    more = tuple(model for model in models if known.is_repository(model))
    settings = msgspec.structs.replace(settings, model_repository=settings.model_repository + more)
    rest = [model for model in models if model not in more]
    if not rest and not settings.model_repository:
        raise ConfigError("no model is given: --model takes a file, a folder or a catalogue name")
    with progress_on(sys.stderr) as progress:
        sources = known.resolve_all(
            rest,
            fetch=lambda name: catalogue.fetch(name, progress=progress),
            wish=settings.wish,
            convert=text_models.converter(progress, settings.quantization),
        )
    return settings, quantization.quantized(settings, sources)


def serve(
    settings: Settings, sources: Sequence[ModelSource], on_ready: OnReady | None = None
) -> int:
    """Run the server; returns the exit status."""
    with run_folder.run_folder() as folder:
        metrics = folder / "metrics"
        metrics.mkdir()
        # The metrics library looks for its folder once, when it is first imported.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(metrics)
        from ds_serve.ready import announce  # noqa: PLC0415
        from ds_serve.supervisor.supervisor import Supervisor  # noqa: PLC0415

        supervisor = Supervisor(settings, sources, folder, on_ready or announce)
        return asyncio.run(supervisor.run())


def _settings(values: dict[str, Any]) -> Settings:
    known = set(Settings.__struct_fields__)
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigError(f"no setting is called {unknown[0]!r}; there are: {sorted(known)}")
    settings = Settings(**values)
    settings.check()
    return settings


def _strings(value: Any) -> tuple[str, ...]:
    values = [value] if isinstance(value, str | Path) else value
    return tuple(map(str, values))
