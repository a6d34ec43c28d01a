"""Whether a version may be served: one with a manifest only if it passed its gate, and its files
are those that were judged.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from ds_engines import manifest
from ds_engines.errors import LoadError

log = logging.getLogger(__name__)

FLAG = "--allow-unverified"
_WAY_OUT = f" ({FLAG} would serve it all the same)"

Refusal = Callable[[Path], str]
"""Why the version in a folder may not be served; empty where it may."""

Stamps = list[tuple[str, int, int, int]]


def admit(name: str, artifact: Path, *, anyway: bool) -> None:
    """Raise LoadError where the version that a model file belongs to may not be served; log a
    warning where it is served `anyway`.

    All its files are read: call it where that may take long.
    """
    folder = artifact if artifact.is_dir() else artifact.parent
    why = _fault(folder)
    if why and not anyway:
        raise LoadError(why + _WAY_OUT)
    if why:
        log.warning("model %s is served because of %s, though %s", name, FLAG, why)


def refusal(folder: Path) -> str:
    """A `Refusal`."""
    why = _fault(folder)
    return why and why + _WAY_OUT


def _fault(folder: Path) -> str:
    try:
        manifest.admit(folder)
    except (LoadError, OSError) as error:
        return str(error)
    return ""


def never(folder: Path) -> str:
    """A `Refusal` of none."""
    return ""


class Remembered:
    """A `Refusal` that reads files again only when they have changed."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[Stamps, str]] = {}

    def __call__(self, folder: Path) -> str:
        now = _stamps(folder)
        before, why = self._known.get(folder, (None, ""))
        if before != now:
            why = refusal(folder)
            self._known[folder] = (now, why)
        return why


def _stamps(folder: Path) -> Stamps:
    found = [(str(path), path.stat()) for path in sorted(folder.rglob("*"))]
    return [(name, of.st_size, of.st_mtime_ns, of.st_ctime_ns) for name, of in found]
