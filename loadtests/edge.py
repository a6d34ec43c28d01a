"""What a device saves that answers by itself and asks only where it is not sure.

`python -m loadtests.edge` builds device, gateway and cloud in network namespaces, with lines
between them that delay and lose packets, and sends the same images to the device and straight to
the cloud. It prints a table; `--write` puts it into docs/edge.md. It needs root.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from loadtests import edge_link, edge_models, edge_tiers
from loadtests.edge_drive import Answer
from loadtests.edge_models import Models
from loadtests.edge_tiers import Line, Tiers
from loadtests.perf_analyzer import BenchmarkError
from loadtests.report import machine, write

PAGE = Path(__file__).resolve().parent.parent / "docs" / "edge.md"
COLUMNS = (
    "images go to", "p50 ms", "p95 ms", "uplink bytes an image", "to the cloud", "right",
    "answered by device / gateway / cloud",
)  # fmt: skip
EVERYTHING = "the cloud, all of them"
TIERED = "the device first"


def main() -> int:
    given = _arguments()
    console = Console()
    if why := edge_link.missing():
        console.print(f"nothing was measured: {why}", style="red", markup=False)
        return 1
    try:
        with tempfile.TemporaryDirectory() as folder:
            about, rows = measured(Path(folder), given)
        table = Table(*COLUMNS)
        for row in rows:
            table.add_row(*row)
        console.print(table)
        console.print(about, markup=False)
        if given.write:
            lines = [COLUMNS, ("---", *["---:"] * (len(COLUMNS) - 1)), *rows]
            text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
            write(PAGE, "edge", f"{about}\n\n{text}")
            console.print(f"written into {PAGE}")
    except BenchmarkError as error:
        console.print(f"nothing was written: {error}", style="red", markup=False)
        return 1
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--delay", type=float, default=50, help="ms one way, gateway to cloud")
    parser.add_argument("--near", type=float, default=5, help="the same, device to gateway")
    parser.add_argument("--loss", type=float, default=1, help="per cent, gateway to cloud")
    parser.add_argument("--requests", type=int, default=150, help="of each connection")
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=2, help="of each way, in turns")
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE.name}")
    return parser.parse_args()


def measured(folder: Path, given: argparse.Namespace) -> tuple[str, list[tuple[str, ...]]]:
    """What was done, and the table's rows. Raises BenchmarkError."""
    about = machine({})
    models = edge_models.make(folder)
    near, far = Line(given.near / 1000, 0.0), Line(given.delay / 1000, given.loss / 100)
    seen: dict[str, list[Answer]] = {EVERYTHING: [], TIERED: []}
    carried = {way: [0, 0] for way in seen}
    with edge_tiers.running(models, folder, near, far) as tiers:
        ways = {EVERYTHING: (tiers.direct, "large"), TIERED: ("http://127.0.0.1:8000", "small")}
        for turn in range(given.repeats + 1):
            for way, (url, model) in ways.items():
                before = _bytes(tiers)
                found = _answers(tiers, url, model, given, warming=not turn)
                if turn:  # the first is a warm-up
                    seen[way] += found
                    after = _bytes(tiers)
                    for index in (0, 1):
                        carried[way][index] += after[index] - before[index]
    rows = [_row(way, seen[way], carried[way], models) for way in seen]
    said = (
        f"{given.near:g} ms one way from device to gateway, {given.delay:g} ms and "
        f"{given.loss:g} % of packets lost from gateway to cloud; {len(seen[TIERED])} requests of "
        f"one image (4 KiB) each way, {given.connections} at a time. "
        "Alone, the three models are right in "
        + ", ".join(f"{share:.1%}" for share in models.accuracy.values())
        + f" of cases; the rules are below={models.below['small']:.3f} and "
        f"below={models.below['middle']:.3f}. Bytes are those of IP packets on the way up."
    )
    saved = [1 - carried[TIERED][index] / carried[EVERYTHING][index] for index in (0, 1)]
    said += (
        f" Saved: {saved[0]:.0%} of the device's uplink, {saved[1]:.0%} of the way to the cloud."
    )
    return f"{about} {said}", rows


def _answers(
    tiers: Tiers, url: str, model: str, given: argparse.Namespace, *, warming: bool
) -> list[Answer]:
    requests = 5 if warming else given.requests
    words = ("--requests", str(requests), "--connections", str(given.connections))
    found = edge_tiers.answers(tiers.load(url, model, *words))
    failed = [answer.status for answer in found if answer.status != 200]
    if failed:
        raise BenchmarkError(f"{len(failed)} requests to {url} failed, the first with {failed[0]}")
    return found


def _bytes(tiers: Tiers) -> tuple[int, int]:
    return tiers.uplink.passed().up, tiers.backhaul.passed().up


def _row(way: str, answers: list[Answer], carried: list[int], models: Models) -> tuple[str, ...]:
    took = np.array([answer.took for answer in answers]) * 1000
    right = np.mean([answer.chosen == models.labels[answer.image] for answer in answers])
    tiers = np.bincount([answer.tier for answer in answers], minlength=3) / len(answers)
    if way == EVERYTHING:
        tiers = np.array([0.0, 0.0, 1.0])
    return (
        way,
        f"{np.percentile(took, 50):.1f}",
        f"{np.percentile(took, 95):.1f}",
        f"{carried[0] / len(answers):,.0f}",
        f"{carried[1] / len(answers):,.0f}",
        f"{right:.1%}",
        " / ".join(f"{share:.0%}" for share in tiers),
    )


if __name__ == "__main__":
    sys.exit(main())
