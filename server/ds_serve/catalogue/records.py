"""What lies beside the files of a pulled model: where they come from, and each one's hash."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from ds_engines import manifest
from ds_engines.errors import LoadError
from ds_engines.manifest import File

RECORD = ".ds-model.json"
"""Hidden, so that neither the server nor a manifest takes it for a part of the model."""


class Record(msgspec.Struct, frozen=True):
    """`source` as a person gave it, `revision` what it was then, `pulled` a time in UTC as ISO 8601
    has it; `files` by their path in the folder.
    """

    name: str
    source: str
    revision: str
    pulled: str
    files: dict[str, File]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files.values())


def make(folder: Path, name: str, source: str, revision: str) -> Record:
    """The record of the files in a folder, which are all read; it is written there too."""
    now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    files = {path: manifest.file(folder / path) for path in _paths(folder)}
    record = Record(name, source, revision, now, files)
    with (folder / RECORD).open("wb") as out:
        out.write(msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")
        out.flush()
        os.fsync(out.fileno())
    return record


def read(folder: Path) -> Record | None:
    """Of a folder; None where it has none that can be read."""
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        return msgspec.json.decode((folder / RECORD).read_bytes(), type=Record)
    return None


def whole(folder: Path, record: Record) -> bool:
    """Whether all files are there and of the right size; their content is not read."""
    paths = ((folder / name, file) for name, file in record.files.items())
    return all(path.is_file() and path.stat().st_size == file.size for path, file in paths)


def verify(folder: Path, record: Record) -> None:
    """Read all files. Raises LoadError that names every one that is not as it was pulled."""
    wrong = list(_wrong(folder, record))
    if wrong:
        raise LoadError(f"{folder} is not as it was pulled: {'; '.join(wrong)}")


def _wrong(folder: Path, record: Record) -> Iterator[str]:
    there = set(_paths(folder))
    yield from (f"{name} is missing" for name in sorted(set(record.files) - there))
    yield from (f"{name} was not there" for name in sorted(there - set(record.files)))
    for name in sorted(there & set(record.files)):
        found = manifest.file(folder / name)
        if found != record.files[name]:
            yield f"{name} has SHA-256 {found.sha256}, expected {record.files[name].sha256}"


def _paths(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in inside.parts):
            yield inside.as_posix()
