"""How much of a hub's model has come so far: vLLM downloads weights without a word."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

LOOK_SECONDS = 1.0
_FLAG = "--download-dir"
_BLOCK = 512
"""Bytes that `st_blocks` counts by; a file that is made at its full length has few of them yet."""


def cache(environment: Mapping[str, str], words: Sequence[str]) -> Path:
    """Where vLLM, started with these words, puts what it downloads."""
    for at, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag.replace("_", "-") == _FLAG:
            return Path(value if equals else words[at + 1]).expanduser()
    if found := environment.get("HF_HUB_CACHE"):
        return Path(found).expanduser()
    above = environment.get("XDG_CACHE_HOME") or "~/.cache"
    home = environment.get("HF_HOME") or f"{above}/huggingface"
    return Path(home).expanduser() / "hub"


class Downloads:
    """Of one model, by its id: ORGANISATION/NAME. `now`: seconds that only grow."""

    def __init__(self, model: str, folder: Path, now: Callable[[], float] = time.monotonic) -> None:
        self._blobs = folder / f"models--{model.replace('/', '--')}" / "blobs"
        self._now = now
        self._next = 0.0
        self._before = self._size()

    def step(self) -> str:
        """What to tell where more has come since the last look; "" where not."""
        now = self._now()
        if now < self._next:
            return ""
        self._next = now + LOOK_SECONDS
        size, before = self._size(), self._before
        self._before = size
        return f"downloading, {size / 1e9:.1f} GB so far" if size > before else ""

    def _size(self) -> int:
        """In bytes. Files come and go meanwhile."""
        try:
            return sum(each.stat().st_blocks * _BLOCK for each in self._blobs.iterdir())
        except OSError:
            return 0
