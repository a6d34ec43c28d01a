"""What a run must reach, what it reached, and the table that says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rich.table import Table

LATENCIES = ("p50", "p95", "p99")
NAMES: dict[str, str] = {
    "rate": "right answers/s",
    "tokens": "tokens/s",
    "failed": "failed of accepted",
    "refused": "refused of sent",
    **{name: f"{name} ms" for name in LATENCIES},
    **{f"ttft_{name}": f"first token {name} ms" for name in LATENCIES},
    **{f"itl_{name}": f"between tokens {name} ms" for name in LATENCIES},
    "memory_slope": "memory MiB/h",
}
"""Thresholds, and how each reads. `failed` and `refused` are shares, 0 to 1."""

AT_LEAST = ("rate", "tokens")
"""The others are the most that may be."""

MOST_FAILED = 0.001
"""Required of every run that does not say otherwise: 99.9 % of accepted requests are answered."""


@dataclass(frozen=True)
class Verdict:
    """One threshold beside what was seen (None: not measured)."""

    name: str
    wanted: float
    seen: float | None
    required: bool

    @property
    def met(self) -> bool:
        if self.seen is None:
            return False
        return self.seen >= self.wanted if self.name in AT_LEAST else self.seen <= self.wanted

    @property
    def share(self) -> float | None:
        """How much of a wanted rate was reached, or how far a time is within its bound; 1: just."""
        if self.seen is None or self.wanted <= 0 or self.seen <= 0:
            return None
        return self.seen / self.wanted if self.name in AT_LEAST else self.wanted / self.seen

    @property
    def verdict(self) -> str:
        if self.required:
            return "pass" if self.met else "FAIL"
        return "reached" if self.met else "not reached"

    def cells(self) -> tuple[str, ...]:
        """What, wanted, seen, share, verdict."""
        sign = "≥" if self.name in AT_LEAST else "≤"
        percent = self.name in ("failed", "refused")
        share = None if self.required else self.share
        return (
            NAMES[self.name] + ("" if self.required else " (target)"),
            f"{sign} {_number(self.wanted, percent)}",
            "not measured" if self.seen is None else _number(self.seen, percent),
            "" if share is None else f"{share:.0%}",
            self.verdict,
        )


def judge(
    seen: Mapping[str, float],
    require: Mapping[str, float],
    target: Mapping[str, float],
    strict: bool = False,
) -> list[Verdict]:
    """Every threshold, in the order of NAMES, required before targets; `strict`: all required."""
    first = {"failed": MOST_FAILED, **require}
    return [
        Verdict(name, wanted[name], seen.get(name), strict or wanted is first)
        for wanted in (first, target)
        for name in NAMES
        if name in wanted
    ]


def passed(verdicts: list[Verdict]) -> bool:
    return all(each.met for each in verdicts if each.required)


def table(verdicts: list[Verdict]) -> Table:
    shown = Table("threshold", "wanted", "seen", "share", "verdict")
    for column in shown.columns[1:4]:
        column.justify = "right"
    for verdict in verdicts:
        style = None if verdict.met else ("red" if verdict.required else "yellow")
        shown.add_row(*verdict.cells(), style=style)
    return shown


def _number(value: float, percent: bool) -> str:
    if percent:
        return f"{value:.3%}"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"
