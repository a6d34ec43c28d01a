"""Whether moving batch delay and slots while the server runs would pay.

python -m loadtests.controller                          simulated, a minute or two
python -m loadtests.controller --served mlp encoder     with a real server, some five minutes each
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from loadtests.controller import bound, served
from loadtests.controller.policy import Setting
from loadtests.perf_analyzer import BenchmarkError

LATE = 0.1
"""Share of the requests that left late, above which a run says nothing about the server."""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="loadtests.controller",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--served", nargs="+", choices=served.WORKLOADS, metavar="MODEL", default=[])
    made.add_argument("--repeats", type=int, default=3)
    made.add_argument("--seconds", type=float, default=10.0, help="each rate, of a real server")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    given = parser().parse_args(argv)
    if not given.served:
        simulate(given.repeats)
        return 0
    try:
        with tempfile.TemporaryDirectory() as folder:
            for name in given.served:
                serve(name, given.repeats, given.seconds, Path(folder))
    except BenchmarkError as error:
        print(f"loadtests.controller: {error}", file=sys.stderr)
        return 1
    return 0


def simulate(repeats: int) -> None:
    for engine, burst in product(bound.ENGINES, (1, 8)):
        alone = "single requests" if burst == 1 else f"bursts of {burst}"
        cost = f"{engine.batch * 1e3:g} ms a batch and {engine.row * 1e3:g} ms a row"
        print(f"\n{engine.name}, {cost}, {alone}; p99 in ms\n", flush=True)
        _head([engine.highest * load for load in bound.LOADS])
        rows = list(bound.rows(engine, burst, repeats))
        for row in rows:
            _line(row.what, row.p99, rows[0].p99)


def serve(name: str, repeats: int, seconds: float, folder: Path) -> None:
    """Settings take turns; medians. Raises BenchmarkError."""
    work = served.WORKLOADS[name]
    settings = [Setting(delay, slots) for slots in (1, 2) for delay in work.delays]
    seen: dict[Setting, list[served.Run]] = {setting: [] for setting in settings}
    for repeat, setting in product(range(repeats), settings):
        seen[setting].append(served.measure(name, setting, seconds, repeat, folder))
    p99 = {setting: np.median([run.p99 for run in runs], axis=0) for setting, runs in seen.items()}
    runs = [run for each in seen.values() for run in each]
    print(f"\n{name}; p99 in ms, medians of {repeats}\n")
    _head(work.rates)
    for setting in settings:
        _line(str(setting), p99[setting], p99[settings[0]])
    _line("best at each rate", np.min(list(p99.values()), axis=0), p99[settings[0]])
    print(f"\nequal answers: {min(run.equal for run in runs):.2%} at least")
    late = median(run.late for run in runs)
    if late > LATE:
        print(f"{late:.0%} of the requests left late: this machine is too busy for these figures")


def _head(rates: Sequence[float]) -> None:
    cells = ["setting", *(f"{rate:,.0f}/s" for rate in rates)]
    print(f"| {' | '.join(cells)} |\n|---|{'---:|' * len(rates)}")


def _line(what: str, p99: NDArray[np.float64], default: NDArray[np.float64]) -> None:
    print(f"| {what} | {' | '.join(_cells(p99, default))} |", flush=True)


def _cells(p99: NDArray[np.float64], default: NDArray[np.float64]) -> Iterator[str]:
    for value, against in zip(p99, default, strict=True):
        change = "" if p99 is default else f" ({value / against - 1:+.0%})"
        yield f"{value * 1e3:.3g}{change}"


if __name__ == "__main__":
    sys.exit(main())
