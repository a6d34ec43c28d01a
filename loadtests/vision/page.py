"""What was measured, as the tables of docs/inspection.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from loadtests.quantize import TENSORS
from loadtests.quantize.results import machine
from loadtests.vision import CLASSES, example
from loadtests.vision.matching import Outcome
from loadtests.vision.measure import score_for
from loadtests.vision.served import Served

PAGE = example.ROOT / "docs/inspection.md"
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
PRECISION = 0.98


@dataclass(frozen=True)
class Line:
    """One form of the detector: its file's bytes, what it finds, and how quickly it is served."""

    size: int
    found: Outcome
    served: Served | None = None


def markdown(lines: Mapping[str, Line], boards: int, about: str) -> str:
    """`lines` by name; `about`: how the detector was made."""
    first = next(iter(lines.values())).found
    counts = ", ".join(
        f"{count} x {name}" for name, count in zip(CLASSES, first.there, strict=True)
    )
    said = (
        f"{machine(TENSORS)} {about} {boards} boards of 5 megapixels that training and calibration "
        f"have not seen, with {int(first.there.sum())} defects ({counts})."
    )
    return "\n\n".join((said, _table(_overall(lines)), _table(_by_class(lines))))


def _overall(lines: Mapping[str, Line]) -> dict[str, list[str]]:
    score = example.settings("inspection_boxes")["score"]
    rows = {
        f"recall at score {score:g}": [_share(line.found.at(score)[0]) for line in lines.values()],
        "precision there": [_share(line.found.at(score)[1]) for line in lines.values()],
        f"recall at precision {PRECISION:g}": [
            _share(line.found.at(score_for(PRECISION, line.found))[0]) for line in lines.values()
        ],
        "mAP@50": [f"{line.found.mean_average_precision:.4f}" for line in lines.values()],
        "size of the file": [f"{line.size / 1e6:.2f} MB" for line in lines.values()],
    }
    served = [line.served for line in lines.values() if line.served is not None]
    if served:
        clients = served[0].clients
        rows["JPEG to boxes, one client, median"] = [f"{each.alone:.0f} ms" for each in served]
        rows[f"pictures/s, {clients} clients"] = [f"{each.rate:.1f}" for each in served]
        rows["recall of the served ensemble"] = [_share(each.found.at(score)[0]) for each in served]
    return {"": list(lines), **rows}


def _by_class(lines: Mapping[str, Line]) -> dict[str, list[str]]:
    score = example.settings("inspection_boxes")["score"]
    head = [f"{what}, {name}" for what in ("recall", "AP@50") for name in lines]
    rows = {"class": head}
    for kind, name in enumerate(CLASSES):
        recalls = [_share(line.found.recall_of(kind, score)) for line in lines.values()]
        rows[name] = recalls + [
            f"{line.found.average_precision(kind):.4f}" for line in lines.values()
        ]
    return rows


def _table(rows: Mapping[str, list[str]]) -> str:
    lines = [f"| {' | '.join((name, *cells))} |" for name, cells in rows.items()]
    width = len(next(iter(rows.values()))) + 1
    return "\n".join((lines[0], "|" + "---|" * width, *lines[1:]))


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def write(tables: str, page: Path = PAGE) -> None:
    """Between the page's two marks."""
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n{tables}\n{END}{after}", encoding="utf-8")
