"""A repository at an address: S3, Google Cloud Storage, HTTP or whatever else fsspec knows.

What is needed of a model is downloaded into the cache, as a snapshot of its folder that never
changes again, and served from there. A file that is as it was is not downloaded twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from ds_engines.errors import ConfigError, LoadError
from ds_serve.catalogue.progress import Progress, progress_on
from ds_serve.models import CONFIG, is_name
from ds_serve.repository.folder import VERSION, Print, choose, read_config

KEPT = 3
"""Snapshots of a model that stay: a worker may have to be started again from an older one."""

CHUNK = 4 * 1024 * 1024
DEEPEST = 8
MANIFEST = ".manifest.json"
STAMPS = (
    "ETag", "etag", "md5Hash", "Content-MD5", "Digest", "generation", "LastModified",
    "Last-Modified", "last_modified", "updated", "mtime", "created",
)  # fmt: skip
"""What file systems call that which changes with a file."""

Listing = dict[str, tuple[int, str]]
"""Path below the model's folder to size in bytes (-1: unknown) and stamp."""


def is_address(text: str) -> bool:
    """Whether a repository is to be fetched, rather than a folder of this machine."""
    return "://" in text


class Remote:
    """All that raises ConfigError or LoadError names the address, without its password.

    `cache`: where snapshots are kept; `lock` is held while something is downloaded.
    """

    def __init__(self, url: str, cache: Path, lock: threading.Lock) -> None:
        parts = urlsplit(url)
        user, at, host = parts.netloc.rpartition("@")
        self._secret = user + at
        self.where = parts._replace(netloc=host).geturl()
        try:
            from fsspec.core import url_to_fs  # noqa: PLC0415 - an extra

            self._fs, root = url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
        except ImportError as error:
            raise ConfigError(
                f"--model-repository {self.where}: {error}; addresses need the package fsspec "
                "(pip install 'ds-serve[remote]') and the one for their kind (s3fs, gcsfs, ...)"
            ) from None
        except ValueError as error:
            raise ConfigError(f"--model-repository {self.where}: {error}") from None
        self._root = str(root).rstrip("/")
        self._cache = cache / "repositories" / hashlib.sha256(url.encode()).hexdigest()[:16]
        self._lock = lock

    def names(self) -> list[str]:
        with self._reading():
            entries = self._fs.ls(self._root + "/", detail=True)
            names = [_last(entry["name"]) for entry in entries if entry["type"] == "directory"]
        return sorted(name for name in names if name and not name.startswith("."))

    def holds(self, name: str) -> bool:
        return name in self.names()

    def fingerprint(self, name: str) -> Print:
        found: dict[str, list[tuple[str, int, str]]] = {"": []}
        for path, (size, stamp) in self._list(name).items():
            found.setdefault(_version(path), []).append((path, size, stamp))
        return {version: tuple(files) for version, files in found.items()}

    def folder(self, name: str, config: Path | None = None) -> Path:
        """A snapshot of the model, with the versions that its policy, or `config`'s, chooses."""
        listing = self._list(name)
        with self._lock, self._reading(), progress_on(sys.stderr) as progress:
            home = self._cache / name
            home.mkdir(parents=True, exist_ok=True)
            wanted = self._wanted(name, listing, config, home)
            snapshot = home / hashlib.sha256(repr(sorted(wanted.items())).encode()).hexdigest()[:16]
            if not snapshot.is_dir():
                self._fetch(name, wanted, snapshot, progress)
            os.utime(snapshot)
            _sweep(home)
        return snapshot

    def _wanted(self, name: str, listing: Listing, config: Path | None, home: Path) -> Listing:
        """What is needed: the loose files, and the versions to serve."""
        there = {_version(path) for path in listing} - {""}
        if not there:
            return listing
        if config is None and CONFIG in listing:
            config = home / CONFIG
            self._fs.get_file(self._path(name, CONFIG), str(config))
        said = None if config is None else read_config(config)
        chosen = choose(map(int, there), said, self.where)
        versions = {"", *map(str, chosen)}
        return {path: stamp for path, stamp in listing.items() if _version(path) in versions}

    def _fetch(self, name: str, wanted: Listing, snapshot: Path, progress: Progress) -> None:
        """Put the snapshot together out of older ones and downloads; it appears when whole."""
        old = _files_of(snapshot.parent)
        new = {path for path, stamp in wanted.items() if (path, stamp) not in old}
        total = sum(max(0, wanted[path][0]) for path in new)
        progress.note(f"model {name}: fetching {len(new)} files from {self.where}")
        building = Path(tempfile.mkdtemp(dir=snapshot.parent, prefix=".building-"))
        done = 0
        try:
            for path, stamp in wanted.items():
                target = building / path
                target.parent.mkdir(parents=True, exist_ok=True)
                if path not in new:
                    os.link(old[path, stamp], target)
                    continue
                for size in self._download(self._path(name, path), target):
                    done += size
                    progress.downloaded(done, max(total, done))
            (building / MANIFEST).write_text(json.dumps(wanted))
            building.rename(snapshot)
        finally:
            shutil.rmtree(building, ignore_errors=True)

    def _download(self, path: str, target: Path) -> Iterator[int]:
        """Yields the size of each piece that has come."""
        with self._fs.open(path, "rb") as source, target.open("wb") as file:
            while piece := source.read(CHUNK):
                file.write(piece)
                yield len(piece)

    def _list(self, name: str) -> Listing:
        with self._reading():
            return dict(self._walk(self._path(name), "", DEEPEST))

    def _walk(self, path: str, below: str, depth: int) -> Iterator[tuple[str, tuple[int, str]]]:
        for entry in sorted(self._fs.ls(path + "/", detail=True), key=lambda one: one["name"]):
            last = _last(entry["name"])
            if not last or last.startswith(".") or not set("?#\\\0").isdisjoint(last):
                continue  # such as the links by which an index page is sorted
            if entry["type"] == "directory":
                if depth:
                    yield from self._walk(f"{path}/{last}", f"{below}{last}/", depth - 1)
                continue
            known = entry.get("size") is not None
            about = entry if known else self._fs.info(f"{path}/{last}")
            size = about.get("size")
            stamp = " ".join(str(about[key]) for key in STAMPS if about.get(key))
            yield below + last, (-1 if size is None else size, stamp)

    def _path(self, name: str, below: str = "") -> str:
        assert is_name(name), "checked before"
        return f"{self._root}/{name}" + (f"/{below}" if below else "")

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Whatever a file system of fsspec raises becomes a LoadError."""
        try:
            yield
        except (ConfigError, LoadError):
            raise
        except Exception as error:
            said = (str(error) or type(error).__name__).replace(self._secret, "")
            if isinstance(error, FileNotFoundError) and error.errno is None:
                said = f"there is no {said}"  # fsspec says the path alone
            raise LoadError(f"the repository {self.where} cannot be read: {said}") from error


def _version(path: str) -> str:
    first, slash, _ = path.partition("/")
    return first if slash and VERSION.fullmatch(first) else ""


def _last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def _files_of(home: Path) -> dict[tuple[str, tuple[int, str]], Path]:
    """The files of all snapshots, by path and stamp. One without a stamp may have changed."""
    found = {}
    for manifest in home.glob(f"*/{MANIFEST}"):
        for path, (size, stamp) in json.loads(manifest.read_text()).items():
            if stamp:
                found[path, (size, stamp)] = manifest.parent / path
    return found


def _sweep(home: Path) -> None:
    """Remove all snapshots but the newest."""
    snapshots = [path for path in home.iterdir() if path.is_dir()]
    snapshots.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for old in snapshots[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
