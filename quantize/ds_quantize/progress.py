"""What the user sees while a run is under way: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

Item = TypeVar("Item")

QUIET_SECONDS = 5.0
"""Off a terminal, a long loop says how far it is no more often."""


class Reporter(Protocol):
    """Shows stages; within one it is the `Progress` that a handler is given."""

    def stage(self, name: str) -> contextlib.AbstractContextManager[None]:
        """A stage is under way while the context is open."""

    def reused(self, name: str) -> None:
        """A stage was done by an earlier run."""

    def track(
        self, items: Iterable[Item], description: str, total: int | None = None
    ) -> Iterator[Item]:
        """`items`, and a bar that moves as they are taken."""

    def say(self, message: str) -> None:
        """One line."""


def reporter(console: Console) -> Reporter:
    """What suits the console."""
    return Bars(console) if console.is_terminal else Lines(console)


class Silent:
    """Shows nothing: for those who call the pipeline from Python."""

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        yield

    def reused(self, name: str) -> None:
        return

    def track(
        self, items: Iterable[Item], description: str, total: int | None = None
    ) -> Iterator[Item]:
        yield from items

    def say(self, message: str) -> None:
        return


class Lines:
    """A line at the begin and the end of each stage."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        begun = time.monotonic()
        self.say(f"{name} ...")
        yield
        self.say(f"{name}: done in {time.monotonic() - begun:.1f} s")

    def reused(self, name: str) -> None:
        self.say(f"{name}: unchanged, reused")

    def track(
        self, items: Iterable[Item], description: str, total: int | None = None
    ) -> Iterator[Item]:
        total = _length(items, total)
        said = time.monotonic()
        for done, item in enumerate(items):
            if time.monotonic() - said >= QUIET_SECONDS:
                said = time.monotonic()
                self.say(f"  {description}: {done}" + ("" if total is None else f" of {total}"))
            yield item

    def say(self, message: str) -> None:
        self._console.print(message, markup=False, highlight=False, soft_wrap=True)


class Bars:
    """A bar for the stage, and one for the loop that it is in."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: Progress | None = None

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        begun = time.monotonic()
        with _bars(self._console) as bars:
            self._bars = bars
            try:
                bars.add_task(name, total=None, of="")
                yield
            finally:
                self._bars = None
        self._tell(f"[green]done[/] {name} in {time.monotonic() - begun:.1f} s")

    def reused(self, name: str) -> None:
        self._tell(f"[cyan]kept[/] {name}: unchanged, reused")

    def track(
        self, items: Iterable[Item], description: str, total: int | None = None
    ) -> Iterator[Item]:
        bars = self._bars
        if bars is None:
            yield from items
            return
        total = _length(items, total)
        task = bars.add_task(f"  {description}", total=total, of="")
        try:
            for done, item in enumerate(items):
                yield item
                counted = f"{done + 1}" if total is None else f"{done + 1}/{total}"
                bars.update(task, advance=1, of=counted)
        finally:
            bars.remove_task(task)

    def say(self, message: str) -> None:
        self._console.print(message, markup=False, highlight=False, soft_wrap=True)

    def _tell(self, markup: str) -> None:
        self._console.print(markup, highlight=False, soft_wrap=True)


def _bars(console: Console) -> Progress:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[of]}"),
        TimeElapsedColumn(),
    )
    # What is printed meanwhile by libraries goes above the bars.
    return Progress(*columns, console=console, transient=True)


def _length(items: Iterable[Item], total: int | None) -> int | None:
    return len(items) if total is None and isinstance(items, Sized) else total
