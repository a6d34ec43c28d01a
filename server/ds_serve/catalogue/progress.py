"""Showing a download: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    import rich.progress

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
            self.note(f"  {done / MB:.1f} of {total / MB:.1f} MB")
        self._tenth = tenth


class Bar(Progress):
    """A progress bar with size, speed and time left; there from the first report on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._rich: rich.progress.Progress | None = None

    def note(self, text: str) -> None:
        self._shown().console.print(text, markup=False, highlight=False, soft_wrap=True)

    def downloaded(self, done: int, total: int) -> None:
        bars = self._shown()
        if done == 0 or not bars.task_ids:
            for task in bars.task_ids:
                bars.remove_task(task)
            bars.add_task("", total=None)
        bars.update(bars.task_ids[0], completed=done, total=total or None)

    def close(self) -> None:
        if self._rich is not None:
            self._rich.stop()

    def _shown(self) -> rich.progress.Progress:
        if self._rich is None:
            self._rich = _bars(self._stream)
            self._rich.start()
        return self._rich


def _bars(stream: TextIO) -> rich.progress.Progress:
    import rich.console  # noqa: PLC0415  only a terminal needs it
    import rich.progress as shown  # noqa: PLC0415

    return shown.Progress(
        shown.BarColumn(),
        shown.DownloadColumn(),
        shown.TransferSpeedColumn(),
        shown.TimeRemainingColumn(),
        console=rich.console.Console(file=stream),
    )


@contextlib.contextmanager
def progress_on(stream: TextIO) -> Iterator[Progress]:
    """The fitting way to show progress on `stream`, for as long as the context lasts."""
    if not stream.isatty():
        yield Lines(stream)
        return
    with contextlib.closing(Bar(stream)) as bar:
        yield bar
