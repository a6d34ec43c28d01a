"""Keeping the cache small: what was not used for longest goes first, never what is in use."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple, Protocol

from ds_engines.errors import ConfigError, LoadError
from ds_serve.catalogue import records
from ds_serve.catalogue.cache import MADE, unused, used_made
from ds_serve.catalogue.entries import names
from ds_serve.catalogue.progress import MB, Progress

LIMIT = "DS_SERVE_CACHE_LIMIT"

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", re.IGNORECASE)
_POWERS = " KMGT"


class Notes(Protocol):
    """Told what goes, a line for a person."""

    def note(self, text: str) -> None: ...


class Item(NamedTuple):
    """One thing in the cache. `lock` is held while it is in use; `used`: when it was last, in
    seconds as `time.time` counts; `name` is what a person calls it, `source` where it is from.
    `made`: here, out of another model, when a server started.
    """

    name: str
    source: str
    revision: str
    folder: Path
    lock: Path
    size: int
    used: float
    finished: bool = True
    made: bool = False


def limit() -> int:
    """Bytes that the cache may have, by $DS_SERVE_CACHE_LIMIT; 0: any number."""
    return parse_size(os.environ.get(LIMIT, "0"), LIMIT)


def parse_size(text: str, what: str) -> int:
    """Bytes of "20GB", "1.5 TiB" or "1000000". Raises ConfigError that names `what`."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ConfigError(f"{what} is {text!r}; give a size such as 20GB, 500MiB or 1000000")
    base = 1024 if found[3] else 1000
    return int(float(found[1]) * base ** _POWERS.index(found[2].upper() or " "))


def items(root: Path) -> list[Item]:
    """Everything that may go, the one that was not used for longest first."""
    found = [*_catalogue(root), *_pulled(root), *_made(root), *_unfinished(root)]
    return sorted(found, key=lambda item: item.used)


def shrink(root: Path, most: int, progress: Notes) -> list[Item]:
    """Remove what was not used for longest until no more than `most` bytes are left, or all that is
    left is in use; what was removed.
    """
    there = items(root)
    total = sum(item.size for item in there)
    gone = []
    for item in there:
        if total <= most:
            break
        if remove(root, item):
            progress.note(f"Removed {item.name} from the cache ({item.size / MB:,.1f} MB)")
            total -= item.size
            gone.append(item)
    if total > most:
        progress.note(
            f"The cache {root} has {total / MB:,.1f} MB, above {most / MB:,.1f} MB: the rest is in "
            "use"
        )
    return gone


def tidy(root: Path, progress: Notes) -> None:
    """Keep the cache within its limit after something was made in it, which is to be held."""
    most = limit()
    if most:
        shrink(root, most, progress)


def make_room(root: Path, limit: int, needed: int, where: str, progress: Progress) -> None:
    """Keep the cache within its limit, also with what is about to come."""
    if not limit:
        return
    if needed > limit:
        raise LoadError(
            f"{where} has {needed / MB:,.1f} MB, and the cache is limited to {limit / MB:,.1f} MB; "
            "raise DS_SERVE_CACHE_LIMIT, or pull it --to a repository"
        )
    shrink(root, limit - needed, progress)


def remove(root: Path, item: Item) -> bool:
    """Remove it at once, unless it is in use; whether it is gone."""
    with unused(item.lock) as free:
        if free and item.folder.exists():
            discard(item.folder, root / ".trash")
    return free


def discard(folder: Path, trash: Path) -> None:
    """Out of sight first: nobody finds half of it."""
    trash.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(dir=trash))
    folder.rename(place / folder.name)
    shutil.rmtree(place, ignore_errors=True)


def superseded(root: Path) -> list[Item]:
    """States that a newer one of the same source has taken the place of."""
    newest: dict[Path, Item] = {}
    for item in _pulled(root):
        before = newest.get(item.folder.parent)
        if before is None or item.used > before.used:
            newest[item.folder.parent] = item
    return [item for item in _pulled(root) if item.folder != newest[item.folder.parent].folder]


def _catalogue(root: Path) -> list[Item]:
    found = []
    for folder in (root / "catalogue").glob("[!.]*/*"):
        name = folder.parent.name
        lock = root / "catalogue" / ".used" / f"{name}.{folder.name}"
        source = "the catalogue" if name in names() else "an older catalogue"
        found.append(
            Item(name, source, folder.name, folder, lock, _size(folder), _used(lock, folder))
        )
    return found


def _pulled(root: Path) -> list[Item]:
    found = []
    for folder in (root / "pulled").glob("[!.]*/*"):
        lock = root / "pulled" / ".used" / f"{folder.parent.name}.{folder.name}"
        record = records.read(folder)
        name, source, revision = (
            (record.name, record.source, record.revision) if record else (folder.name, "?", "")
        )
        found.append(Item(name, source, revision, folder, lock, _size(folder), _used(lock, folder)))
    return found


def _made(root: Path) -> list[Item]:
    """What conversions and `--quantization` have left: a folder for each content and way."""
    found = []
    for kind in MADE:
        for folder in (root / kind).glob("[!.]*"):
            lock, said = used_made(root, kind, folder.name), f"made for {kind}"
            name = folder.name
            if kind == "quantized":  # a hash, and in it the model's folder
                name = next((each.name for each in folder.iterdir() if each.is_dir()), name)
                said = "made by --quantization"
            size, used = _size(folder), _used(lock, folder)
            found.append(Item(name, said, folder.name, folder, lock, size, used, made=True))
    return found


def _unfinished(root: Path) -> list[Item]:
    """Whoever pulls holds the lock of the source, so that its staging folder is in use."""
    found = []
    for folder in (root / "openvino").glob(".*.part"):
        name = folder.name.removeprefix(".").removesuffix(".part")
        lock = used_made(root, "openvino", name)
        size, used = _size(folder), _used(lock, folder)
        found.append(Item(name, "", "", folder, lock, size, used, finished=False, made=True))
    for kind in ("catalogue", "pulled"):
        for folder in (root / kind / ".staging").glob("*"):
            lock = root / kind / ".locks" / folder.name
            size = _size(folder)
            if size:
                used = _used(lock, folder)
                found.append(Item(folder.name, "", "", folder, lock, size, used, finished=False))
    return found


def _used(lock: Path, folder: Path) -> float:
    return (lock if lock.exists() else folder).stat().st_mtime


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
