"""The outcome on the terminal and in locust's HTML report."""

from __future__ import annotations

from html import escape
from pathlib import Path

from locust.env import Environment
from locust.html import get_html_report
from rich.console import Console

from loadtests.load import thresholds
from loadtests.load.run import BUSY_PERCENT, Outcome
from loadtests.load.scenario import Scenario, ScenarioError
from loadtests.load.thresholds import Verdict

MOST_ERRORS = 5
SLOPE_SECONDS = 60
STYLE = "font-family:sans-serif;margin:1.5em auto;max-width:1100px"
HEADINGS = ("threshold", "wanted", "seen", "share", "verdict")
CELL = "padding:.2em 1em;border:1px solid #999"


def show(console: Console, outcome: Outcome, verdicts: list[Verdict]) -> None:
    console.print(thresholds.table(verdicts))
    for line in notes(outcome):
        console.print(line, markup=False, highlight=False)


def notes(outcome: Outcome) -> list[str]:
    """What should be known beside the thresholds."""
    figures = outcome.figures
    lines = [
        f"{outcome.answered:,} answers in {outcome.seconds:.0f} s, {outcome.checked:,} checked; "
        f"{figures.get('rate', 0):,.0f}/s, p50 {figures.get('p50', 0):.0f} ms, "
        f"p95 {figures.get('p95', 0):.0f} ms, p99 {figures.get('p99', 0):.0f} ms, "
        f"refused {figures.get('refused', 0):.2%}, failed {figures.get('failed', 0):.3%}"
    ]
    if "tokens" in figures:
        lines.append(
            f"{figures['tokens']:,.0f} tokens/s; first token p50 {figures.get('ttft_p50', 0):.0f}, "
            f"p95 {figures.get('ttft_p95', 0):.0f} ms; between tokens "
            f"p50 {figures.get('itl_p50', 0):.0f}, p95 {figures.get('itl_p95', 0):.0f} ms"
        )
    if outcome.memory and outcome.memory_mib:
        first, last = outcome.memory_mib
        # A slope an hour out of some seconds says nothing.
        slope = f", slope {outcome.memory}" if outcome.seconds >= SLOPE_SECONDS else ""
        lines.append(f"server memory {first:,.0f} to {last:,.0f} MiB{slope}")
    if outcome.busiest > BUSY_PERCENT:
        lines.append(
            f"a process of users took {outcome.busiest:.0f} % of a core: it may be the limit, "
            "not the server; --workers N gives it more"
        )
    lines += [f"{count} times: {message}" for count, message in outcome.errors[:MOST_ERRORS]]
    return lines + [f"problem: {problem}" for problem in outcome.problems]


def check(path: Path | None) -> None:
    """Before the run, rather than after it: raises ScenarioError where no file can be written."""
    if path is not None and not path.parent.is_dir():
        raise ScenarioError(f"{path} cannot be written: there is no folder {path.parent}")


def write(
    path: Path,
    environment: Environment,
    scenario: Scenario,
    outcome: Outcome,
    verdicts: list[Verdict],
) -> None:
    """locust's report with plots, below our table. Raises ScenarioError where it can't be."""
    page: str = get_html_report(environment, False)  # type: ignore[no-untyped-call]
    head, body, rest = page.partition("<body>")
    try:
        path.write_text(head + body + section(scenario, outcome, verdicts) + rest)
    except OSError as error:
        raise ScenarioError(f"the report {path} cannot be written: {error.strerror}") from None


def markdown(scenario: Scenario, outcome: Outcome, verdicts: list[Verdict]) -> str:
    """The thresholds, and below them what else should be known."""
    rows = [HEADINGS, ("---",) * len(HEADINGS), *(verdict.cells() for verdict in verdicts)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    seen = " ".join(f"{line[:1].upper()}{line[1:]}." for line in notes(outcome))
    return "\n".join([f"{scenario.about}.", "", *lines, "", seen]) + "\n"


def section(scenario: Scenario, outcome: Outcome, verdicts: list[Verdict]) -> str:
    """The thresholds as HTML."""
    rows: list[tuple[str, ...]] = [HEADINGS]
    rows += [verdict.cells() for verdict in verdicts]
    cells = "".join(
        "<tr>" + "".join(f'<td style="{CELL}">{escape(cell)}</td>' for cell in row) + "</tr>"
        for row in rows
    )
    lines = "".join(f"<p>{escape(line)}</p>" for line in notes(outcome))
    table = f'<table style="border-collapse:collapse">{cells}</table>'
    return f'<section style="{STYLE}"><h2>{escape(scenario.about)}</h2>{table}{lines}</section>'
