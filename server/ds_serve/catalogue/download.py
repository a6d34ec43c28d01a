"""Getting a source's files into a folder: read on where an earlier attempt stopped, and checked."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tarfile
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path

from ds_engines.errors import ConfigError, LoadError
from ds_serve.catalogue.cache import sync_folder
from ds_serve.catalogue.progress import MB, Progress
from ds_serve.catalogue.sources import Dropped, Listing, Part, Source, Unreachable, safe
from ds_serve.catalogue.web import PIECE

AT_ONCE = 4
"""Files that are read at the same time."""

ATTEMPTS = 5
"""Times in a row that a file may be dropped without a byte having come."""

PAUSE = 0.5
"""Seconds before the second attempt; each further one waits twice as long."""

_FULL = (errno.ENOSPC, errno.EDQUOT)


class Stopped(Exception):
    """Another file has failed, or a person has had enough."""


class Download:
    """One source's files on their way into `folder`, which holds what has come so far of exactly
    this `listing`.
    """

    def __init__(self, source: Source, listing: Listing, folder: Path, progress: Progress) -> None:
        self._source, self._listing, self._progress = source, listing, progress
        self._folder = folder
        self._files, self._parts = folder / "files", folder / "parts"
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._done = 0

    def run(self) -> Path:
        """The folder with all files, verified. Raises LoadError, Unreachable, ConfigError; what
        has come stays, for the next attempt, unless it was wrong.
        """
        try:
            for folder in (self._files, self._parts):
                folder.mkdir(parents=True, exist_ok=True)
            self._require_space()
            self._all()
            for part in self._listing.parts:
                if part.archive:
                    self._unpack(part)
            sync_folder(self._files)
        except OSError as error:
            raise self._unstored(error) from error
        return self._files

    def _all(self) -> None:
        pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="pull")
        try:
            tasks = [pool.submit(self._one, part) for part in self._listing.parts]
            finished, _ = wait(tasks, return_when=FIRST_EXCEPTION)
            self._stop.set()
            failed = [error for task in finished if (error := task.exception())]
            for error in sorted(failed, key=lambda one: isinstance(one, Stopped)):
                raise error
        finally:
            self._stop.set()
            pool.shutdown(cancel_futures=True)

    def _one(self, part: Part) -> None:
        target = self._target(part)
        if target.is_file():
            self._came(target.stat().st_size)
            return
        partial = self._partial(part)
        if not part.certain:
            partial.unlink(missing_ok=True)
        digest = self._insist(part, partial)
        self._check(part, partial, digest)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.rename(target)

    def _target(self, part: Part) -> Path:
        home = self._parts / "archives" if part.archive else self._files
        return home / safe(part.path)

    def _partial(self, part: Part) -> Path:
        return self._parts / hashlib.sha256(part.path.encode()).hexdigest()[:24]

    def _insist(self, part: Part, partial: Path) -> str:
        """Try until the whole file has come; its SHA-256."""
        left, pause = ATTEMPTS, PAUSE
        while True:
            before = _size(partial)
            try:
                return self._append(part, partial)
            except Dropped as error:
                came = _size(partial) > before
                left, pause = (ATTEMPTS, PAUSE) if came else (left - 1, 2 * pause)
                if not left:
                    raise Unreachable(
                        f"{part.path} of {self._source.where} does not come: {error}; what has "
                        "come is kept, run the same again to go on"
                    ) from None
            if self._stop.wait(pause):
                raise Stopped

    def _append(self, part: Part, partial: Path) -> str:
        with partial.open("ab+") as file:
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256")
            have = file.seek(0, os.SEEK_END)
            self._came(have)
            try:
                begins, pieces = (have, iter(())) if have == part.size else self._read(part, have)
                if begins != have:
                    file.truncate(begins)
                    self._came(begins - have)
                    digest, have = _digest(partial), begins
                for piece in pieces:
                    file.write(piece)
                    digest.update(piece)
                    have += len(piece)
                    self._came(len(piece))
                file.flush()
                os.fsync(file.fileno())
            except BaseException:
                self._came(-have)
                raise
        if part.size > have:
            self._came(-have)
            raise Dropped(f"{have} of {part.size} bytes have come")
        return digest.hexdigest()

    def _read(self, part: Part, offset: int) -> tuple[int, Iterator[bytes]]:
        begins, pieces = self._source.read(part, offset)
        if begins not in (0, offset):
            raise LoadError(f"{part.path} of {self._source.where} was sent from byte {begins} on")
        return begins, self._until_stopped(pieces)

    def _until_stopped(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            if self._stop.is_set():
                raise Stopped
            yield piece

    def _came(self, size: int) -> None:
        with self._lock:
            self._done += size
            self._progress.downloaded(self._done, max(self._listing.size, self._done))

    def _check(self, part: Part, partial: Path, digest: str) -> None:
        """Raises LoadError, and removes the file, where it is not what the source states."""
        size = _size(partial)
        wrong = ""
        if part.size not in (-1, size):
            wrong = f"{size} bytes, expected {part.size}"
        elif part.sha256 and digest != part.sha256:
            wrong = f"SHA-256 {digest}, expected {part.sha256}"
        elif part.git and (found := _git(partial)) != part.git:
            wrong = f"git id {found}, expected {part.git}"
        if wrong:
            partial.unlink()
            raise LoadError(f"{part.path} of {self._source.where} has {wrong}; it was deleted")

    def _unpack(self, part: Part) -> None:
        archive = self._target(part)
        try:
            with tarfile.open(archive) as opened:
                opened.extractall(self._files, filter="data")
        except tarfile.TarError as error:
            raise LoadError(f"{part.path} of {self._source.where} is unfit: {error}") from None
        archive.unlink()

    def _require_space(self) -> None:
        archives = sum(max(part.size, 0) for part in self._listing.parts if part.archive)
        here = sum(path.stat().st_size for path in self._folder.rglob("*") if path.is_file())
        if shutil.disk_usage(self._folder).free < self._listing.size + archives - here:
            raise self._full(self._listing.size + archives)

    def _unstored(self, error: OSError) -> LoadError | ConfigError:
        if error.errno in _FULL:
            return self._full(self._listing.size)
        return ConfigError(
            f"{self._source.where} cannot be stored: {error.strerror or error} ({error.filename})"
        )

    def _full(self, needed: int) -> LoadError:
        return LoadError(
            f"the disk of {self._folder.parent} is too full for {self._source.where}, which needs "
            f"{needed / MB:,.1f} MB; free some (ds-models prune), and run the same again to go on"
        )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _digest(path: Path) -> hashlib._Hash:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256")


def _git(path: Path) -> str:
    """The id that git gives a file of this content."""
    digest = hashlib.sha1(f"blob {_size(path)}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()
