"""Run the benchmarks that fit this machine, and add a dated section to docs/benchmarks.md.

    python -m loadtests.bench                   all, some fifteen minutes without peers
    python -m loadtests.bench mlp start-up      some of them
    python -m loadtests.bench soak --soak 30m   as long as it should be

A part that fails is named and the others go on; the exit status is 1 then.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from loadtests.bench import machine, page
from loadtests.bench.page import Outcome
from loadtests.bench.parts import SOAK, Part, parts
from loadtests.peers.measure import Meter
from loadtests.peers.processes import share_of_others

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "benchmarks.md"
LISTEN_SECONDS = 2.0
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    given = _arguments(arguments)
    console = Console(soft_wrap=True, highlight=False)
    when, about = datetime.now(UTC), machine.described(share_of_others(LISTEN_SECONDS))
    console.print(about, markup=False)
    try:
        outcomes = _run(_chosen(given, console), console)
    except KeyboardInterrupt:
        console.print("interrupted; nothing is written", style="red")
        return INTERRUPTED
    if not given.no_write and any(outcome.table for outcome in outcomes):
        page.append(given.page, page.section(when, about, outcomes))
        console.print(f"added to {given.page}", markup=False)
    for outcome in outcomes:
        if outcome.problem:
            _say(console, f"failed: {outcome.part.name}: {outcome.problem}")
    return 1 if any(outcome.problem for outcome in outcomes) else 0


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("names", nargs="*", metavar="PART", help=f"of {', '.join(parts())}; default: all")
    add("--repeats", type=int, default=3, help="of what is repeated; default: 3")
    add("--soak", default=SOAK, help=f"how long the soak lasts; default: {SOAK}")
    add("--page", type=Path, default=PAGE, help=f"default: docs/{PAGE.name}")
    add("--no-write", action="store_true", help="only show")
    given = parser.parse_args(arguments)
    if unknown := [name for name in given.names if name not in parts()]:
        parser.error(f"no part is called {', '.join(unknown)}; there are {', '.join(parts())}")
    return given


def _chosen(given: argparse.Namespace, console: Console) -> list[Part]:
    """Those that were named, or all that can be run here."""
    there = parts(given.soak, given.repeats)
    if given.names:
        return [there[name] for name in there if name in given.names]
    for part in there.values():
        if why := part.missing():
            console.print(f"left out: {part.name}: {why}", markup=False)
    return [part for part in there.values() if not part.missing()]


def _run(chosen: Sequence[Part], console: Console) -> list[Outcome]:
    outcomes = []
    for number, part in enumerate(chosen, 1):
        console.rule(f"{number} of {len(chosen)}: {part.name}")
        outcomes.append(_one(part))
        if outcomes[-1].problem:
            _say(console, f"{part.name}: {outcomes[-1].problem}; the others go on")
    return outcomes


def _one(part: Part) -> Outcome:
    """Its output goes to the terminal, its table into a file, which is there where it succeeded."""
    if why := part.missing():
        return Outcome(part, "", why, 0.0)
    meter = Meter()
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "table.md"
        status = subprocess.run(part.command(table), cwd=ROOT, check=False).returncode
        text = table.read_text() if table.exists() else ""
    problem = f"exit status {status}" if status else ""
    if not text and not problem:
        problem = "it wrote no table"
    return Outcome(part, text, problem, meter.others(0))


def _say(console: Console, text: str) -> None:
    console.print(text, style="red", markup=False)


if __name__ == "__main__":
    sys.exit(main())
