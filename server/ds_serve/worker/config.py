"""What the supervisor tells a worker."""

from __future__ import annotations

from pathlib import Path

from ds_engines.base import EngineOptions
from ds_engines.spec import ModelSpec
from ds_serve.child import ChildConfig


class WorkerConfig(ChildConfig, frozen=True, kw_only=True):
    """`socket` is where the gateways will connect."""

    spec: ModelSpec
    options: EngineOptions
    socket: Path
    config_file: Path | None = None
