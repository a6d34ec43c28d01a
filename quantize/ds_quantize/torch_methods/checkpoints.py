"""Training that was interrupted goes on from where it was, to the same result."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger(__name__)

SECONDS = 10.0
"""Between two checkpoints of one training, so that short epochs are not spent on writing."""

State = dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """Of one training; without a path it keeps nothing."""

    path: Path | None
    _saved: list[float] = field(default_factory=lambda: [time.monotonic()])

    def load(self) -> State:
        """What was saved last, of an earlier run; nothing where there is none that can be read."""
        if self.path is None or not self.path.is_file():
            return {}
        try:
            found: State = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:  # a power cut, say: whatever pickle makes of it
            log.warning("%s cannot be read, so training begins anew: %s", self.path, error)
            return {}
        return found

    def due(self) -> bool:
        """Whether the last one was some time ago."""
        return self.path is not None and time.monotonic() - self._saved[0] >= SECONDS

    def save(self, state: State) -> None:
        """In place of what was saved before, at once."""
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.path)
        self._saved[0] = time.monotonic()


class Checkpoints:
    """Those of one stage, which may train several times: a file for each, in their order."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._count = 0

    def next(self) -> Checkpoint:
        """Of the training that begins."""
        self._count += 1
        return Checkpoint(None if self._folder is None else self._folder / f"{self._count}.pt")
