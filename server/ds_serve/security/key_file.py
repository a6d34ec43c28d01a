"""The file of keys as it is now: read again when it has changed."""

from __future__ import annotations

import logging
import stat
import time
from pathlib import Path

from ds_engines.errors import ConfigError
from ds_serve.security.key_text import parse
from ds_serve.security.keys import Keys

log = logging.getLogger(__name__)

LOOK_EVERY = 1.0
"""Seconds."""

_Mark = tuple[int, int, int]


class KeyFile:
    """Looks at the file when the keys are needed, once a second at most."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError where the file cannot be read or is wrong."""
        self._path = path
        self._mark = self._look()
        self._keys = self._read()
        self._due = time.monotonic() + LOOK_EVERY

    @property
    def keys(self) -> Keys:
        """Of the newest file that was right. A wrong one is told to the log and changes nothing."""
        now = time.monotonic()
        if now >= self._due:
            self._due = now + LOOK_EVERY
            self._refresh()
        return self._keys

    def _refresh(self) -> None:
        try:
            mark = self._look()
            if mark == self._mark:
                return
            self._mark = mark
            self._keys = self._read()
        except ConfigError as error:
            log.error("the keys stay as they were: %s", error)
        else:
            log.info("%s: %d keys", self._path, len(self._keys))

    def _look(self) -> _Mark:
        """What tells one content from the next. A file that is gone has a mark too, so that it is
        told once.
        """
        try:
            found = self._path.stat()
        except OSError:
            return (0, 0, 0)
        return (found.st_ino, found.st_mtime_ns, found.st_size)

    def _read(self) -> Keys:
        try:
            text = self._path.read_text(encoding="utf-8")
            mode = self._path.stat().st_mode
        except OSError as error:
            raise ConfigError(f"{self._path} cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise ConfigError(f"{self._path} cannot be read: {error}") from None
        if mode & stat.S_IWOTH:
            log.warning("%s: everybody on this machine may write keys into it", self._path)
        return parse(text, str(self._path))
