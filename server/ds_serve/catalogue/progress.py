"""Showing a download: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TextIO

MB = 1_000_000


class Progress:
    """What a fetch reports. This one shows nothing."""

    def note(self, text: str) -> None:
        """A step begins; `text` is one line for a person."""

    def downloaded(self, done: int, total: int) -> None:
        """So many bytes of `total` have arrived."""


class Lines(Progress):
    """Plain lines, one for every tenth of the download, for logs and pipes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._tenth = 0

    def note(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def downloaded(self, done: int, total: int) -> None:
        tenth = 10 * done // total if total else 0
        if tenth > self._tenth:
            self._tenth = tenth
            self.note(f"  {done / MB:.1f} of {total / MB:.1f} MB")


class Bar(Progress):
    """A progress bar with size, speed and time left."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console  # noqa: PLC0415  only a terminal needs it
        from rich.progress import (  # noqa: PLC0415
            BarColumn,
            DownloadColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
        from rich.progress import Progress as Rich  # noqa: PLC0415

        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        self._rich = Rich(*columns, console=Console(file=stream))
        self._task = self._rich.add_task("", total=None, visible=False)

    def note(self, text: str) -> None:
        self._rich.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def downloaded(self, done: int, total: int) -> None:
        self._rich.update(self._task, completed=done, total=total or None, visible=True)

    @contextlib.contextmanager
    def shown(self) -> Iterator[Bar]:
        with self._rich:
            yield self


@contextlib.contextmanager
def progress_on(stream: TextIO) -> Iterator[Progress]:
    """The fitting way to show progress on `stream`, for as long as the context lasts."""
    if not stream.isatty():
        yield Lines(stream)
        return
    with Bar(stream).shown() as bar:
        yield bar
