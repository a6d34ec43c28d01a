"""Measure a tiny model behind ds-serve, over each protocol, beside its engine alone.

python -m loadtests.mlp                 prints the table and writes it into docs/benchmarks.md
python -m loadtests.mlp --no-write -- --gateways 2      what follows -- is for ds-serve
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from loadtests import direct, model, report
from loadtests.perf_analyzer import PROTOCOLS, BenchmarkError, Point, Tool, find
from loadtests.server import Server, running

PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
ENGINE = "engine alone"
BATCHES = (1, 16, 64)
CONNECTIONS = (1, 16, 64)

Results = dict[tuple[str, int], list[Point]]


def main() -> int:
    given = _arguments()
    console = Console()
    try:
        if report.busy() and not (given.anyway or given.no_write):
            raise BenchmarkError("other programs are at work here; --anyway measures all the same")
        tool = find()
        about = report.machine({"perf_analyzer": tool.version})
        lines = _measured(tool, given)
        console.print(report.table(lines))
        note = f"{given.repeats} interleaved repeats of {given.seconds:g} s each."
        if given.serve:
            note += f" ds-serve ran with `{' '.join(given.serve)}`."
        if given.markdown:
            given.markdown.write_text(report.markdown(lines, note) + "\n")
        elif not given.no_write:
            report.write(PAGE, "mlp", report.markdown(lines, f"{about} {note}"))
            console.print(f"written into {PAGE}")
    except BenchmarkError as error:
        console.print(f"nothing was written: {error}", style="red", markup=False)
        return 1
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3, help="interleaved; default: 3")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each; default: 6")
    parser.add_argument("--no-write", action="store_true", help=f"leave {PAGE.name} alone")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there")
    parser.add_argument("--anyway", action="store_true", help="even if the machine is busy")
    parser.add_argument("serve", nargs="*", metavar="-- OPTION", help="options for ds-serve")
    return parser.parse_args()


def _measured(tool: Tool, given: argparse.Namespace) -> list[report.Line]:
    results: Results = defaultdict(list)
    steps = given.repeats * (len(BATCHES) + len(PROTOCOLS) * len(CONNECTIONS))
    with tempfile.TemporaryDirectory() as folder, Progress(transient=True) as progress:
        path = Path(folder) / "mlp.onnx"
        model.write(path)
        task = progress.add_task("measuring", total=steps)

        def add(what: str, at_once: int, point: Point) -> None:
            results[what, at_once].append(point)
            progress.advance(task)

        for _ in range(given.repeats):
            for batch in BATCHES:
                add(ENGINE, batch, direct.measure(path, batch, given.seconds / 3))
            # A server for each repeat, so that the engine alone has the machine to itself.
            with running(f"mlp={path}", given.serve) as server:
                for connections in CONNECTIONS:
                    for protocol in PROTOCOLS:
                        point = _behind(server, tool, protocol, connections, given.seconds)
                        add(protocol, connections, point)
    ordered = sorted(results, key=lambda key: [ENGINE, *PROTOCOLS].index(key[0]))
    return [report.Line(*key, points=tuple(results[key])) for key in ordered]


def _behind(server: Server, tool: Tool, protocol: str, connections: int, seconds: float) -> Point:
    """Raises BenchmarkError too where the server has seen a request fail."""
    address = server.http if protocol == "HTTP" else server.grpc
    before = server.counted("mlp")
    point = tool.measure(protocol, address, "mlp", connections, seconds)
    after = server.counted("mlp")
    if after[1] > before[1] or after[0] == before[0]:
        raise BenchmarkError(
            f"{after[1] - before[1]} requests failed and {after[0] - before[0]} succeeded over "
            f"{protocol} at {connections} connections"
        )
    return point


if __name__ == "__main__":
    sys.exit(main())
