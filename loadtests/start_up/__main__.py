"""How long each model takes to be ready, cold and warm, and how much memory it then takes.

    python -m loadtests.start_up                          all models, some four minutes
    python -m loadtests.start_up --models mlp,magika --repeats 1

Beside ds-serve, the engine's library is called directly in a bare Python process. "Cold" is with
the model's files out of the page cache; with --drop-caches all files of all programs, for which
it needs root, and which slows down whatever else runs here.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from loadtests.perf_analyzer import CACHE, BenchmarkError
from loadtests.start_up import page_cache, results
from loadtests.start_up.measure import Start, alone, served
from loadtests.start_up.results import Row
from loadtests.start_up.subjects import LIBRARIES, SUBJECTS, Subject

WIDTH = 170
OURS = "ds-serve"

Begin = Callable[[Subject, Path], Start]


def main(arguments: Sequence[str] | None = None) -> int:
    given = _arguments(arguments)
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.default_int_handler)
    console = Console()
    try:
        rows, failures = _measured(given, console)
    except KeyboardInterrupt:
        _say(console, "interrupted; all servers are stopped")
        return 130
    if rows:
        Console(width=max(console.width, WIDTH)).print(results.table(rows))
    for failure in failures:
        _say(console, f"no row: {failure}")
    if given.markdown and rows:
        given.markdown.write_text(f"{_note(given)}\n\n{results.markdown(rows)}\n")
    return 1 if failures else 0


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.start_up",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--models", type=_names, default=list(SUBJECTS), help=f"of {','.join(SUBJECTS)}")
    add("--repeats", type=int, default=3, help="interleaved; default: 3")
    add("--drop-caches", action="store_true", help="for a cold start drop the whole page cache")
    add("--markdown", type=Path, metavar="FILE", help="write the table there, as Markdown")
    return parser.parse_args(arguments)


def _names(text: str) -> list[str]:
    words = [word.strip() for word in text.split(",")]
    if unknown := [word for word in words if word not in SUBJECTS]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: there are {', '.join(SUBJECTS)}")
    return words


def _measured(given: argparse.Namespace, console: Console) -> tuple[list[Row], list[str]]:
    """Rows of all models that started and answered each time, and what was wrong with others."""
    rows, failures = [], []
    # Beside the other caches: in a memory file system nothing could be forgotten.
    CACHE.parent.mkdir(parents=True, exist_ok=True)
    folder = tempfile.TemporaryDirectory(dir=CACHE.parent)
    with folder as name, Progress(console=console) as bar:
        task = bar.add_task("starting", total=len(given.models) * given.repeats * 4)
        for model in given.models:
            bar.update(task, description=model)
            try:
                subject = SUBJECTS[model](Path(name))
                rows += _rows(subject, given, lambda: bar.advance(task))
            except (BenchmarkError, ValueError) as error:
                failures.append(f"{model}: {error}")
    return rows, failures


def _rows(subject: Subject, given: argparse.Namespace, advance: Callable[[], None]) -> list[Row]:
    """Both ways in turns, each cold and then warm: the cold start leaves the file in the cache."""
    ways: dict[str, Begin] = {OURS: served, LIBRARIES[subject.engine]: alone}
    cold: dict[str, list[Start]] = {what: [] for what in ways}
    warm: dict[str, list[Start]] = {what: [] for what in ways}
    for _ in range(given.repeats):
        for what, begin in ways.items():
            for starts in (cold[what], warm[what]):
                if starts is cold[what]:
                    _chill(subject, given.drop_caches)
                with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                    starts.append(begin(subject, Path(folder)))
                advance()
    return [Row(subject, what, cold[what], warm[what]) for what in ways]


def _chill(subject: Subject, everything: bool) -> None:
    if everything:
        page_cache.forget_all()
    page_cache.forget(subject.files)


def _note(given: argparse.Namespace) -> str:
    if given.drop_caches:
        cold = "the whole page cache dropped before"
    else:
        cold = "the model's files out of the page cache, programs and libraries in it"
    return f"Medians of {given.repeats} interleaved repeats; cold: {cold}."


def _say(console: Console, text: str) -> None:
    console.print(text, style="red", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
