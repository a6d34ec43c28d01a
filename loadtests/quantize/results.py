"""What was measured, as the table of a page."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from ds_quantize.api import Quantized
from ds_quantize.evaluate import Estimate, Evaluation
from ds_quantize.gate import Verdict
from loadtests.quantize import LANGUAGE, TENSORS, Case

COLUMNS = (
    "model", "recipe", "metric", "original", "candidate", "agreement", "size", "speedup at batch",
    "passed",
)  # fmt: skip
BEGIN, END = "<!-- {}: begin -->", "<!-- {}: end -->"

LIBRARIES = {
    TENSORS: ("onnxruntime",),
    LANGUAGE: ("transformers", "llmcompressor", "nncf", "openvino"),
}
"""Table of the page to the libraries that its figures depend on."""


PERPLEXITY = "perplexity"
LARGE = 2.0
"""Values from here on, such as perplexities, are shown with fewer digits."""


@dataclass(frozen=True)
class Line:
    """One model."""

    case: Case
    recipe: str
    evaluation: Evaluation
    verdict: Verdict

    def cells(self) -> tuple[str, ...]:
        found = self.evaluation
        more = [each for each in found.metrics[1:] if each.metric == PERPLEXITY]
        shown = [found.quality, *more]
        speedups = ", ".join(f"{batch}: {ratio:.1f}" for batch, ratio in found.speedups.items())
        return (
            f"{self.case.name}: {self.case.about}",
            f"`{self.recipe}`",
            "<br>".join(each.metric for each in shown),
            "<br>".join(_estimate(each.baseline) for each in shown),
            "<br>".join(_estimate(each.candidate) for each in shown),
            "" if found.quality.metric == "cosine" else _estimate(found.agreement),
            f"{100 * found.size:.0f} % of {found.baseline.size_bytes / 1e6:.1f} MB",
            speedups,
            "yes" if self.verdict.passed else "; ".join(self.verdict.reasons),
        )  # fmt: skip


def line(case: Case, made: Quantized) -> Line:
    if made.evaluation is None or made.verdict is None:
        raise ValueError(f"{case.name} was not evaluated")
    return Line(case, case.recipe.stem, made.evaluation, made.verdict)


def tables(lines: Sequence[Line]) -> dict[str, list[Line]]:
    """The lines of each table that has any."""
    found: dict[str, list[Line]] = {}
    for line in lines:
        found.setdefault(line.case.table, []).append(line)
    return found


def markdown(table: str, lines: Sequence[Line], others: Sequence[str] = ()) -> str:
    """`others`: rows that are there already."""
    rows = [COLUMNS, tuple("---" for _ in COLUMNS), *(line.cells() for line in lines)]
    said = [*others, *(f"| {' | '.join(row)} |" for row in rows[2:])]
    head = [f"| {' | '.join(row)} |" for row in rows[:2]]
    return machine(table) + "\n\n" + "\n".join([*head, *sorted(said)])


def machine(table: str) -> str:
    """One paragraph."""
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES[table])
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    busy = f"busy with other work (load average {load:.1f} on {cores} cores)"
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, ds-serve {version('ds-serve')}: {_processor()}, {cores} "
        f"cores, {memory:.0f} GiB, Linux {platform.release()}, "
        f"{busy if load > 1.5 * cores else 'otherwise idle'}; Python {platform.python_version()}, "
        f"{libraries}."
    )


def _processor() -> str:
    for text in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = text.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def write(page: Path, lines: Sequence[Line]) -> None:
    """Each table between two marks of the page, where rows of other recipes stay."""
    for table, own in tables(lines).items():
        begin, end = BEGIN.format(table), END.format(table)
        text = page.read_text(encoding="utf-8")
        before, _, rest = text.partition(begin)
        there, _, after = rest.partition(end)
        said = markdown(table, own, _others(there, own))
        page.write_text(f"{before}{begin}\n{said}\n{end}{after}", encoding="utf-8")


def _others(table: str, lines: Sequence[Line]) -> list[str]:
    """The rows of a table that are of none of these recipes."""
    rows = [line for line in table.splitlines() if line.startswith("| ")][2:]
    new = {f"`{line.recipe}`" for line in lines}
    return [row for row in rows if row.split(" | ")[1] not in new]


def _estimate(found: Estimate | None) -> str:
    if found is None:
        return ""
    if found.value >= LARGE:
        return f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})"
    return f"{found.value:.4f} ({found.low:.4f} to {found.high:.4f})"
