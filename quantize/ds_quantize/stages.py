"""Stages: steps of a run whose results are kept, so that equal work is done once.

A stage's key is a hash over all that decides its result. Its folder is put together under another
name and renamed when it is whole: a run that is interrupted leaves nothing that looks finished,
and the next one goes on from the last stage that was.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from ds_engines.errors import ServeError
from ds_quantize import disk, keeping
from ds_quantize.errors import MethodError, QuantizeError
from ds_quantize.progress import Reporter

log = logging.getLogger(__name__)

RECORD = "stage.json"

Make = Callable[[Path], dict[str, Any]]
"""Writes a stage's files into the folder given, and returns what else is to be kept, as JSON."""


class Record(msgspec.Struct, frozen=True):
    """What a finished stage says of itself, in its `stage.json`."""

    name: str
    seconds: float
    result: dict[str, Any]


@dataclass(frozen=True)
class Done:
    """A finished stage. `key` stands for its contents; `reused`: it was there before this run."""

    key: str
    folder: Path
    record: Record
    reused: bool

    @property
    def result(self) -> dict[str, Any]:
        """What the stage returned."""
        return self.record.result


@dataclass
class Stages:
    """The stages below one work folder. `done` are those of this run, in their order.

    `keep`: bytes that the folder may grow to; those in use are kept in any case.
    """

    root: Path
    reporter: Reporter
    keep: int = field(default_factory=keeping.limit)
    done: list[Done] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._uses = keeping.Uses(self.root)

    def run(self, name: str, inputs: dict[str, Any], make: Make) -> Done:
        """The stage `name` over `inputs`, which are JSON; made now unless it was before."""
        key = key_of(name, inputs)
        folder = self.root / f"{name}-{key[:20]}"
        self._hold(folder)
        found = self._found(folder, key)
        if found is None:
            found = self._made(folder, name, key, make)
        elif key not in {done.key for done in self.done}:
            self.reporter.reused(name)
        self.done.append(found)
        return found

    def _found(self, folder: Path, key: str) -> Done | None:
        try:
            text = (folder / RECORD).read_bytes()
            return Done(key, folder, msgspec.json.decode(text, type=Record), reused=True)
        except (OSError, msgspec.MsgspecError):
            return None

    def _made(self, folder: Path, name: str, key: str, make: Make) -> Done:
        lock = self.root / keeping.LOCKS / folder.name
        lock.touch()
        with disk.locked(lock, lambda: self.reporter.say(f"{name}: another run is at it; waiting")):
            if found := self._found(folder, key):
                return found
            partial = disk.emptied(folder.with_name(f"{folder.name}{keeping.PARTIAL}"))
            with self.reporter.stage(name):
                begun = time.monotonic()
                result = _tried(name, make, partial)
                record = Record(name, round(time.monotonic() - begun, 3), result)
            text = msgspec.json.encode(record, enc_hook=_plain)
            (partial / RECORD).write_bytes(text)
            disk.sync_tree(partial)
            if folder.exists():
                disk.emptied(folder)  # one without a record, which nothing else can use
            partial.rename(folder)
            disk.sync(folder.parent)
        shutil.rmtree(resumed_from(partial), ignore_errors=True)
        self._prune()
        return Done(key, folder, msgspec.json.decode(text, type=Record), reused=False)

    def _prune(self) -> None:
        removed = keeping.prune(self.root, self.keep)
        if removed:
            log.info("removed from %s: %s", self.root, ", ".join(removed))

    def _hold(self, folder: Path) -> None:
        try:
            self._uses.hold(folder.name)
        except OSError as error:
            raise QuantizeError(
                f"the work folder {self.root} cannot be written: {error.strerror}; "
                "give another with --work"
            ) from None


def resumed_from(partial: Path) -> Path:
    """Beside the folder of a stage that is being made: what outlives an interruption of it, from
    which the next run may go on. It is removed when the stage is whole.
    """
    return partial.with_name(partial.name.removesuffix(keeping.PARTIAL) + keeping.RESUME)


def _tried(name: str, make: Make, folder: Path) -> dict[str, Any]:
    """What is raised has one line for the user; the log has the rest."""
    try:
        return make(folder)
    except ServeError:
        raise
    except OSError as error:
        where = "" if error.filename is None else f"{error.filename}: "
        raise QuantizeError(f"{name}: {where}{error.strerror or error}") from error
    except Exception as error:
        log.debug("%s failed", name, exc_info=error)
        line = str(error).strip().partition("\n")[0]
        raise MethodError(f"{name} fails on this model: {type(error).__name__}: {line}") from error


def _plain(value: Any) -> Any:
    """Libraries report numbers of their own kinds: numpy's scalars and arrays."""
    listed = getattr(value, "tolist", None)
    return listed() if callable(listed) else str(value)


def key_of(name: str, inputs: dict[str, Any]) -> str:
    """A SHA-256 over the stage's name and what it is made of."""
    text = msgspec.json.encode([name, inputs], order="deterministic")
    return hashlib.sha256(text).hexdigest()


def default_root() -> Path:
    """`quantize` in ds-serve's cache folder."""
    if own := os.environ.get("DS_SERVE_CACHE"):
        return Path(own).expanduser().absolute() / "quantize"
    xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
    base = xdg if xdg.is_absolute() else Path.home() / ".cache"
    return base / "ds-serve" / "quantize"
