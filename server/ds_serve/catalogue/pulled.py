"""Models in the cache that were pulled from anywhere; see `fetch` for those of the catalogue.

pulled/NAME-KEY/STATE/     one state of one source, whole, with its record
pulled/.staging/NAME-KEY/  what has come so far
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from ds_engines.errors import ConfigError, LoadError
from ds_serve.catalogue import prune, records
from ds_serve.catalogue.cache import default_root, hold, locked, sync_folder
from ds_serve.catalogue.download import Download
from ds_serve.catalogue.progress import MB, Progress
from ds_serve.catalogue.records import Record
from ds_serve.catalogue.sources import Listing, Patterns, Source, Unreachable

_ALL = Patterns()


def pull(
    source: Source,
    *,
    progress: Progress | None = None,
    root: Path | None = None,
    wanted: Patterns = _ALL,
    sha256: str = "",
    limit: int = 0,
) -> Path:
    """The folder of the model, pulled as it is now unless it is here already; it stays as long as
    this process lives. Where the source cannot be reached, the state that was pulled last.

    `sha256`: what the only file must have. `limit`: bytes that the cache may have; what was not
    used for longest goes, 0: nothing. Several processes may call this at once. Raises LoadError,
    ConfigError.
    """
    progress = progress or Progress()
    home = Home(root or default_root(), source, wanted)
    try:
        listing = stated(wanted.of(source.list(), source.where), sha256)
    except Unreachable as error:
        return _latest(home, error, progress)
    folder = home.folder / listing.digest
    home.prepare()
    hold(home.used(folder))
    if not _ready(folder):
        with locked(home.lock, lambda: progress.note(f"Another process pulls {source.where}")):
            if not _ready(folder):
                _pull(home, source, listing, folder, progress, limit)
    return folder


def stated(listing: Listing, sha256: str) -> Listing:
    """The listing with the hash that a person states for its only file."""
    if not sha256:
        return listing
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise ConfigError(f"--sha256 {sha256!r} is not 64 digits of 0-9 and a-f")
    if len(listing.parts) != 1:
        raise ConfigError(f"--sha256 is for one file, and there are {len(listing.parts)}")
    (part,) = listing.parts
    if part.sha256 not in ("", sha256):
        raise LoadError(f"{part.path} has SHA-256 {part.sha256}, expected {sha256}")
    return Listing(listing.revision, (part._replace(sha256=sha256),))


class Home:
    """The places of one source's files in the cache."""

    def __init__(self, root: Path, source: Source, wanted: Patterns) -> None:
        said = repr((source.where, *wanted)) if wanted else source.where
        name = f"{source.name}-{hashlib.sha256(said.encode()).hexdigest()[:10]}"
        self.root = root
        self.folder = root / "pulled" / name
        self.staging = root / "pulled" / ".staging" / name
        self.lock = root / "pulled" / ".locks" / name

    def prepare(self) -> None:
        """Make the folders; ConfigError where the cache cannot be written."""
        try:
            for folder in (self.folder, self.staging.parent, self.lock.parent):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"the model cache {self.root} cannot be written: {error.strerror} "
                f"({error.filename}); set DS_SERVE_CACHE to a folder that can be"
            ) from error

    def used(self, state: Path) -> Path:
        """The lock that is held as long as a state is in use."""
        return used(self.root, state)

    def states(self) -> list[Path]:
        """Whole ones, the one that was used last first."""
        if not self.folder.is_dir():
            return []
        found = [path for path in self.folder.iterdir() if _ready(path)]
        return sorted(found, key=lambda path: _time(self.used(path)), reverse=True)


def used(root: Path, state: Path) -> Path:
    return root / "pulled" / ".used" / f"{state.parent.name}.{state.name}"


def _time(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def _ready(folder: Path) -> bool:
    record = records.read(folder)
    return record is not None and records.whole(folder, record)


def _latest(home: Home, error: Unreachable, progress: Progress) -> Path:
    for folder in home.states():
        hold(home.used(folder))
        record = records.read(folder)
        if record is not None and records.whole(folder, record):
            progress.note(f"{error}; the copy of {record.pulled} is used")
            return folder
    raise error


def _pull(
    home: Home, source: Source, listing: Listing, folder: Path, progress: Progress, limit: int
) -> None:
    prune.make_room(home.root, limit, listing.size, source.where, progress)
    with staged(home.staging, source, listing, progress) as files:
        record = records.make(files, source.name, source.where, listing.revision)
        shutil.rmtree(folder, ignore_errors=True)  # one that has been damaged since
        files.rename(folder)
        sync_folder(folder.parent)
    progress.note(f"{source.where} is ready in {folder} ({record.size / MB:,.1f} MB)")


@contextlib.contextmanager
def staged(staging: Path, source: Source, listing: Listing, progress: Progress) -> Iterator[Path]:
    """A folder with all files, verified. What else was staged of that source goes; what has come
    stays where this fails.
    """
    progress.note(f"Pulling {source.where} ({listing.size / MB:,.1f} MB, {_files(listing)})")
    if staging.is_dir():
        for other in (path for path in staging.iterdir() if path.name != listing.digest):
            shutil.rmtree(other, ignore_errors=True)
    yield Download(source, listing, staging / listing.digest, progress).run()
    shutil.rmtree(staging, ignore_errors=True)


def _files(listing: Listing) -> str:
    count = len(listing.parts)
    return f"{count} file{'s' if count > 1 else ''}"


def records_in(root: Path) -> Iterator[tuple[Path, Record]]:
    """Every whole state of every source."""
    for folder in sorted((root / "pulled").glob("[!.]*/*")):
        if record := records.read(folder):
            yield folder, record
