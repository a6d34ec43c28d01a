"""What a client may ask of the whole server: its models and settings, which the supervisor owns."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from ds_engines.errors import Unsupported

TraceValues = dict[str, list[str]]
"""Triton's trace settings by Triton's names; each value as a list of strings."""

LogValues = dict[str, bool | int | str]
"""Triton's log settings by Triton's names."""


class IndexEntry(msgspec.Struct, frozen=True, array_like=True):
    """One version of a model, in Triton's words.

    `state`: READY, LOADING, UNLOADING or UNAVAILABLE. `version` is "" where no version of the
    model has been looked at yet.
    """

    name: str
    version: str
    state: str
    reason: str = ""


class Control:
    """The same answers whichever gateway is asked. All calls raise errors of ds_engines.errors."""

    async def index(self, ready: bool = False) -> list[IndexEntry]:
        """All models of the server and its repositories; only those that are ready, if asked."""
        raise Unsupported("the repository index is not offered here")

    async def load(
        self, name: str, config: str | None = None, files: Mapping[str, bytes] | None = None
    ) -> None:
        """Load a model, or load it anew; returns when it is ready.

        `config`: a ModelConfig as JSON, in place of the model's config.pbtxt. `files`: contents
        by path below the model's folder (`1/model.onnx`), in place of the folder.
        """
        raise Unsupported("loading models is not offered here")

    async def unload(self, name: str, dependents: bool = False) -> None:
        """Stop serving a model; requests in flight are finished. Returns at once, as Triton."""
        raise Unsupported("unloading models is not offered here")

    async def trace(
        self, model: str = "", changes: Mapping[str, list[str] | None] | None = None
    ) -> TraceValues:
        """The trace settings after these changes; None brings back the default."""
        raise Unsupported("changing trace settings is not offered here")

    async def log(self, changes: Mapping[str, bool | int | str | None] | None = None) -> LogValues:
        """The log settings after these changes; None brings back the default."""
        raise Unsupported("changing log settings is not offered here")
