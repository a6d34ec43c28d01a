"""What the supervisor tells a worker."""

from __future__ import annotations

from pathlib import Path

import msgspec

from ds_engines.base import EngineOptions
from ds_engines.spec import ModelSpec
from ds_serve.child import ChildConfig


class CacheConfig(msgspec.Struct, frozen=True):
    """The response cache: bytes of all models together, and the file in which they are counted."""

    size: int
    file: Path


class WorkerConfig(ChildConfig, frozen=True, kw_only=True):
    """`socket` is where the gateways will connect. Files that the configuration names lie in
    `folder`; beside it where that is None. `fallback`: the engine to take where the spec's does not
    take the model; empty for none. `alone`: no other worker serves the model beside this one.
    """

    spec: ModelSpec
    options: EngineOptions
    socket: Path
    config_file: Path | None = None
    folder: Path | None = None
    cache: CacheConfig | None = None
    allow_unverified: bool = False
    fallback: str = ""
    alone: bool = True
