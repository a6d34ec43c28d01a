"""Files and batches on disk. One process owns the folder; whatever it knows is in it.

`files/ID.json` says what a file is and whose, `files/ID.data` is what is in it; `batches/ID.json`
is a batch. Each is written aside and then renamed, so that a crash leaves the old or the new one.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ds_engines.errors import ConfigError, NotFound, TooLarge

PER_KEY = 16 << 30
"""Bytes of files that one key may keep."""

_ID = re.compile(r"(?:file-|batch_)[0-9a-f]{32}")

Record = TypeVar("Record", bound="File | Batch")


class File(msgspec.Struct, kw_only=True):
    """As OpenAI has it. `owner` is a key's name, which no client is shown. Times are Unix'."""

    id: str
    owner: str
    filename: str
    purpose: str
    bytes: int
    created_at: int
    expires_at: int | None = None

    def shown(self) -> dict[str, Any]:
        said: dict[str, Any] = {"object": "file", "status": "processed", "status_details": None}
        return said | _without_owner(self)


class Counts(msgspec.Struct):
    total: int = 0
    completed: int = 0
    failed: int = 0


class Batch(msgspec.Struct, kw_only=True):
    """As OpenAI has it, but for the owner."""

    id: str
    owner: str
    endpoint: str
    input_file_id: str
    completion_window: str
    created_at: int
    expires_at: int
    status: str = "validating"
    errors: dict[str, Any] | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: Counts = msgspec.field(default_factory=Counts)
    metadata: dict[str, str] | None = None

    @property
    def ended(self) -> bool:
        return self.status in ("completed", "failed", "expired", "cancelled")

    def become(self, status: str) -> None:
        self.status = status
        setattr(self, f"{status}_at", now())

    def shown(self) -> dict[str, Any]:
        return {"object": "batch"} | _without_owner(self)


def _without_owner(record: File | Batch) -> dict[str, Any]:
    said: dict[str, Any] = msgspec.to_builtins(record)
    del said["owner"]
    return said


def now() -> int:
    return int(time.time())


def new_id(prefix: str) -> str:
    """Ids in the order of their times, so that lists are."""
    return f"{prefix}{time.time_ns():016x}{secrets.token_hex(8)}"


class Store:
    """Raises ConfigError where the folder cannot be had, or is another server's."""

    def __init__(self, folder: Path) -> None:
        self._files = folder / "files"
        self._batches = folder / "batches"
        try:
            for each in (folder, self._files, self._batches):
                each.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"--files {folder}: another server uses it") from None
        except OSError as error:
            raise ConfigError(f"--files {folder}: {error.strerror}") from None
        for left in (*self._files.glob("*.new"), *self._batches.glob("*.new")):
            left.unlink()
        self.files = {one.id: one for one in _read_all(self._files, File)}
        self.batches = {one.id: one for one in _read_all(self._batches, Batch)}
        for data in self._files.glob("*.data"):
            if data.stem not in self.files:  # its upload was broken off
                data.unlink()

    def close(self) -> None:
        os.close(self._lock)

    def file(self, id: str, owner: str) -> File:
        """Raises NotFound, also for somebody else's."""
        return _owned(self.files, id, owner, "file")

    def batch(self, id: str, owner: str) -> Batch:
        """Raises NotFound, also for somebody else's."""
        return _owned(self.batches, id, owner, "batch")

    def data(self, id: str) -> Path:
        return self._files / f"{id}.data"

    def part(self, batch: Batch, kind: str) -> Path:
        """What a batch has answered so far: `output` or `error` lines."""
        return self._batches / f"{batch.id}.{kind}"

    def check_room(self, owner: str, size: int) -> None:
        """Raises TooLarge where the owner's files have no room for more."""
        held = sum(one.bytes for one in self.files.values() if one.owner == owner)
        if held + size > PER_KEY:
            raise TooLarge(f"this key's files hold {held:,} bytes; the limit is {PER_KEY:,}")

    def keep(self, record: File | Batch) -> None:
        """Write it as it is now."""
        folder = self._files if isinstance(record, File) else self._batches
        path = folder / f"{record.id}.json"
        new = path.with_suffix(".new")
        with new.open("wb") as file:
            file.write(msgspec.json.encode(record))
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
        if isinstance(record, File):
            self.files[record.id] = record
        else:
            self.batches[record.id] = record

    def adopt(self, path: Path, batch: Batch, kind: str, expires_at: int) -> str | None:
        """Make a file of the lines in `path`, which is gone then; None where there are none."""
        if not path.exists() or not path.stat().st_size:
            path.unlink(missing_ok=True)
            return None
        made = File(
            id=new_id("file-"),
            owner=batch.owner,
            filename=f"{batch.id}_{kind}.jsonl",
            purpose="batch_output",
            bytes=path.stat().st_size,
            created_at=now(),
            expires_at=expires_at,
        )
        path.replace(self.data(made.id))
        self.keep(made)
        return made.id

    def delete(self, file: File) -> None:
        (self._files / f"{file.id}.json").unlink(missing_ok=True)
        self.data(file.id).unlink(missing_ok=True)
        self.files.pop(file.id, None)

    def expire(self) -> None:
        """Delete the files whose time is over."""
        used = {one.input_file_id for one in self.batches.values() if not one.ended}
        for file in list(self.files.values()):
            if file.expires_at is not None and file.expires_at <= now() and file.id not in used:
                self.delete(file)


def _read_all(folder: Path, kind: type[Record]) -> Iterator[Record]:
    for path in sorted(folder.glob("*.json")):
        try:
            yield msgspec.json.decode(path.read_bytes(), type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"--files: {path} is not what this server has written: {error}"
            ) from None


def _owned(records: dict[str, Record], id: str, owner: str, what: str) -> Record:
    found = records.get(id) if _ID.fullmatch(id) else None
    if found is None or found.owner != owner:
        raise NotFound(f"there is no {what} {id!r}")
    return found
