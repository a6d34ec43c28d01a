"""The dated sections at the end of docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from loadtests.bench.parts import Part


@dataclass(frozen=True)
class Outcome:
    """What came of one part: its table as Markdown, or what was wrong.

    `others`: the share of the machine, 0 to 1, that other programs took meanwhile.
    """

    part: Part
    table: str
    problem: str
    others: float


def section(when: datetime, about: str, outcomes: Sequence[Outcome]) -> str:
    """Markdown: the machine, a table for each part that succeeded, and the names of the others."""
    blocks = [f"## {when:%Y-%m-%d, %H:%M} UTC", about]
    for outcome in outcomes:
        if outcome.table:
            blocks += [f"### {outcome.part.title}", outcome.table.strip(), _busy(outcome)]
    if failed := [outcome for outcome in outcomes if outcome.problem]:
        names = "; ".join(f"{outcome.part.name}: {outcome.problem}" for outcome in failed)
        blocks.append(f"Failed: {names}.")
    return "\n\n".join(blocks) + "\n"


def append(page: Path, text: str) -> None:
    """Add a section to the end of the page."""
    page.write_text(f"{page.read_text().rstrip()}\n\n{text}")


def _busy(outcome: Outcome) -> str:
    program = " ".join(outcome.part.words)
    return f"`python -m {program}`; other programs took {outcome.others:.0%} of the machine."
