"""What a gateway asks of the supervisor for a client. Structs are arrays on the wire."""

from __future__ import annotations

import msgspec


class IndexEntry(msgspec.Struct, frozen=True, array_like=True):
    """One version of a model, in Triton's words.

    `state`: READY, LOADING, UNLOADING or UNAVAILABLE. Of a model that has not been loaded yet
    there is one entry, which has but a name.
    """

    name: str
    version: str = ""
    state: str = ""
    reason: str = ""


class Index(msgspec.Struct, array_like=True, tag=20):
    """Which models are there, in which state?"""

    id: int
    ready: bool


class Load(msgspec.Struct, array_like=True, tag=21):
    """Load a model: `config` in place of its own, `files` (by path) in place of its folder."""

    id: int
    name: str
    config: str | None
    files: dict[str, bytes]


class Unload(msgspec.Struct, array_like=True, tag=22):
    """Serve a model no more."""

    id: int
    name: str
    dependents: bool


class Trace(msgspec.Struct, array_like=True, tag=23):
    """Change the trace settings of one model, or of all where `model` is empty, and tell them."""

    id: int
    model: str
    changes: dict[str, list[str] | None]


class Log(msgspec.Struct, array_like=True, tag=24):
    """Change the log settings, and tell them."""

    id: int
    changes: dict[str, bool | int | str | None]


Order = Index | Load | Unload | Trace | Log
