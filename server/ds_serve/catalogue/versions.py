"""Versions of a model in a repository of this machine: put in place whole, promoted, taken back.

What is promoted is what `version_policy` in the model's config.pbtxt names, so that every server of
that layout goes by it. What was promoted before, locks and half-pulled versions are in the folder
`.ds-models` of the repository, which servers leave alone.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ds_engines import manifest
from ds_engines.errors import ConfigError, LoadError
from ds_serve.catalogue import policy, records
from ds_serve.catalogue.cache import locked, sync_folder
from ds_serve.catalogue.progress import Progress
from ds_serve.catalogue.prune import discard
from ds_serve.catalogue.pulled import staged
from ds_serve.catalogue.sources import Listing, Source
from ds_serve.models import CONFIG, bad_name, is_name
from ds_serve.repository.admission import refusal
from ds_serve.repository.folder import VERSION, choose, read_config

if TYPE_CHECKING:
    from ds_proto.model_config_pb2 import ModelConfig

HOME = ".ds-models"
PASSED, FAILED = "passed", "failed"


class _History(msgspec.Struct):
    """What was served before each promotion, the latest last."""

    before: list[list[int]] = []


class Model:
    """The model folder `repository`/`name`, whose changes exclude each other.

    Raises ConfigError for a name that no model may have, or an address.
    """

    def __init__(self, folder: Path) -> None:
        if "://" in str(folder) or ":/" in str(folder):
            raise ConfigError(f"{folder} is an address; models are promoted in a folder, as files")
        self.folder = folder.expanduser().absolute()
        self.name = self.folder.name
        self.home = self.folder.parent / HOME
        if not is_name(self.name) or self.name.startswith("."):
            raise ConfigError(bad_name(self.name))

    @property
    def _past(self) -> Path:
        return self.home / f"{self.name}.json"

    @property
    def where(self) -> str:
        return str(self.folder)

    def require(self) -> None:
        """Raise ConfigError where there is no such model."""
        if not self.folder.is_dir():
            raise ConfigError(f"there is no model folder {self.folder}")

    def versions(self) -> list[int]:
        """Those that are there, the oldest first."""
        if not self.folder.is_dir():
            return []
        found = [path for path in self.folder.iterdir() if path.is_dir()]
        return sorted(int(path.name) for path in found if VERSION.fullmatch(path.name))

    def served(self) -> list[int]:
        """Those that a server would serve now, as far as manifests say without reading files."""
        there = [each for each in self.versions() if gate(self.folder / str(each)) != FAILED]
        return choose(there, self._config(), self.where) if there else []

    def promoted(self) -> list[int]:
        """Those that the policy names; none where it leaves the choice to the server."""
        config = self._config()
        return sorted(config.version_policy.specific.versions) if config is not None else []

    def _config(self) -> ModelConfig | None:
        path = self.folder / CONFIG
        return read_config(path) if path.is_file() else None

    @contextlib.contextmanager
    def changing(self, progress: Progress) -> Iterator[None]:
        """For as long as the context lasts nobody else changes it. Raises ConfigError."""
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            busy = f"Another process changes {self.where}; waiting for it"
            with locked(self.home / f"{self.name}.lock", lambda: progress.note(busy)):
                yield
        except OSError as error:
            raise ConfigError(
                f"{self.where} cannot be changed: {error.strerror or error} ({error.filename})"
            ) from error

    def add(
        self, source: Source, listing: Listing, version: int | None, progress: Progress
    ) -> Path:
        """The folder of a new version, by default the one after the highest, which appears whole.

        config.pbtxt and other files beside the source's version folders come along where the model
        has none of that name. Raises ConfigError where the version is there, LoadError.
        """
        listing = _highest(listing)
        with self.changing(progress):
            version = version or max(self.versions(), default=0) + 1
            target = self.folder / str(version)
            if target.exists():
                raise ConfigError(f"{target} is there already; give another --version")
            with staged(self.home / "pulling" / self.name, source, listing, progress) as files:
                content, loose = _taken_apart(files, source.where)
                records.make(content, self.name, source.where, listing.revision)
                if why := refusal(content):
                    progress.note(f"Version {version} will not be served: {why}")
                self._place(content, loose, target, progress)
        progress.note(f"{source.where} is version {version} of {self.where}")
        return target

    def _place(
        self, content: Path, loose: Sequence[Path], target: Path, progress: Progress
    ) -> None:
        if not self.folder.is_dir():
            whole = content.parent / f".{self.name}"
            whole.mkdir()
            content.rename(whole / target.name)
            for file in loose:
                file.rename(whole / file.name)
            whole.rename(self.folder)
            sync_folder(self.folder.parent)
            return
        for file in loose:
            own = self.folder / file.name
            if not own.exists():
                file.rename(own)
            elif own.read_bytes() != file.read_bytes():
                progress.note(f"{own} is kept; the {file.name} that came along is another")
        content.rename(target)
        sync_folder(self.folder)

    def promote(self, version: int) -> list[int]:
        """Have a version served, and no other; what was before. Raises ConfigError where it is not
        there, LoadError where it may not be served or its files have changed.
        """
        self.check(version)
        before = self.served()
        if before == [version] == self.promoted():
            return before
        history = self._history()
        if before not in ([], [version]):
            history.before.append(before)
        self._write(history)
        self._serve([version])
        return before

    def roll_back(self) -> tuple[list[int], list[int]]:
        """Serve again what was before the last promotion: what is served now, and what was.

        Raises ConfigError where nothing was, or it is gone.
        """
        self.require()
        history = self._history()
        if not history.before:
            raise ConfigError(f"{self.where} has no promotion that could be taken back")
        again, now = history.before[-1], self.served()
        for version in again:
            self.check(version)
        self._serve(again)
        history.before.pop()
        self._write(history)
        return again, now

    @contextlib.contextmanager
    def tentative(self) -> Iterator[None]:
        """What is promoted in this context, or taken back, is so only if nothing is raised."""
        places = (self._past, self.folder / CONFIG)
        before = [(path, path.read_bytes() if path.is_file() else None) for path in places]
        try:
            yield
        except BaseException:
            for path, data in before:
                self._restore(path, data)
            raise

    def _restore(self, path: Path, data: bytes | None) -> None:
        if data is None:
            path.unlink(missing_ok=True)
        elif path.read_bytes() != data:
            new = self.home / f"{self.name}.before"
            _store(new, data)
            shutil.copymode(path, new)
            new.replace(path)

    def check(self, version: int) -> None:
        """Raise LoadError, ConfigError where a version is not there, not as it was pulled, or not
        to be served by its manifest. Reads all its files.
        """
        folder = self.path(version)
        if record := records.read(folder):
            records.verify(folder, record)
        if why := refusal(folder):
            raise LoadError(why)

    def path(self, version: int) -> Path:
        """The folder of a version. Raises ConfigError where it is not there."""
        self.require()
        if version not in self.versions():
            there = ", ".join(map(str, self.versions())) or "none"
            raise ConfigError(f"{self.where} has no version {version}; there are: {there}")
        return self.folder / str(version)

    def remove(self, version: int, *, force: bool = False) -> None:
        """Remove a version at once. Raises ConfigError where it is served, unless forced."""
        folder = self.path(version)
        if version in self.served() and not force:
            raise ConfigError(
                f"version {version} of {self.where} is what is served: promote another first, or "
                "give --force"
            )
        discard(folder, self.home / "trash")
        sync_folder(self.folder)
        history = self._history()
        history.before = [each for each in history.before if version not in each]
        self._write(history)

    def _serve(self, versions: Sequence[int]) -> None:
        """Write the policy; the file changes at once."""
        own = self.folder / CONFIG
        there = own.is_file()
        text = own.read_text(encoding="utf-8") if there else ""
        new = self.home / f"{self.name}.pbtxt"
        _store(new, policy.with_versions(text, versions).encode())
        policy.require_same(own if there else None, new)
        if there:
            shutil.copymode(own, new)
        new.replace(own)
        sync_folder(self.folder)

    def _history(self) -> _History:
        path = self._past
        try:
            return msgspec.json.decode(path.read_bytes(), type=_History)
        except FileNotFoundError:
            return _History()
        except msgspec.MsgspecError as error:
            raise ConfigError(f"{path} is no history of promotions: {error}") from None

    def _write(self, history: _History) -> None:
        new = self.home / f"{self.name}.json.new"
        _store(new, msgspec.json.encode(history))
        new.replace(self._past)


def gate(folder: Path) -> str:
    """What the manifest of a version says of it; empty for none. Its files are not read."""
    try:
        found = manifest.read(folder)
    except LoadError:
        return FAILED
    return "" if found is None else PASSED if found.gate.passed else FAILED


def models_in(repository: Path) -> list[Model]:
    """All models of a repository. Raises ConfigError where it is none."""
    if not repository.is_dir():
        raise ConfigError(f"there is no model repository {repository}")
    folders = sorted(path for path in repository.iterdir() if path.is_dir())
    return [Model(path) for path in folders if is_name(path.name) and path.name[0] != "."]


def _taken_apart(files: Path, where: str) -> tuple[Path, list[Path]]:
    """The content of a version, and the files that belong beside version folders. Of a folder with
    versions the highest is taken.
    """
    there = [path for path in files.iterdir() if path.is_dir() and VERSION.fullmatch(path.name)]
    if there:
        highest = max(there, key=lambda path: int(path.name))
        return highest, [path for path in files.iterdir() if path.is_file()]
    config = files / CONFIG
    loose = []
    if config.is_file():
        outside = files.parent / CONFIG
        config.replace(outside)
        loose = [outside]
    if not any(files.iterdir()):
        raise LoadError(f"{where} holds {CONFIG} and no model")
    return files, loose


def _highest(listing: Listing) -> Listing:
    """Of a source with version folders, the highest and what lies beside them."""
    tops = {part.path.partition("/")[0] for part in listing.parts if "/" in part.path}
    versions = sorted((top for top in tops if VERSION.fullmatch(top)), key=int)
    others = {f"{version}/" for version in versions[:-1]}
    parts = (part for part in listing.parts if not part.path.startswith(tuple(others)))
    return Listing(listing.revision, tuple(parts))


def _store(path: Path, data: bytes) -> None:
    with path.open("wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
