"""Measure how throughput grows with --gateways: JSON requests from wrk, for a tiny model.

python -m loadtests.scaling                           prints the table
python -m loadtests.scaling --write --json s.json     also writes it into docs/scaling.md
python -m loadtests.scaling --models 4 -- --max-batch-size 128    after --: for ds-serve

The model is served under several names. Each has an engine worker, a process of its own, so that
one worker is not what is measured. wrk runs on processors that the server does not use.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.progress import Progress

from loadtests import model, report
from loadtests.peers import wrk
from loadtests.perf_analyzer import BenchmarkError
from loadtests.scaling import cpus, results
from loadtests.scaling.measure import Plan, measure
from loadtests.scaling.results import Line

PAGE = Path(__file__).resolve().parents[2] / "docs" / "scaling.md"


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    console = Console()
    try:
        if report.busy() and given.write and not given.anyway:
            raise BenchmarkError("other programs are at work here; --anyway measures all the same")
        plan, tool = _plan(given), wrk.find()
        about = _about(plan, tool, given.rounds)
        lines = _measured(given, plan, tool)
        about += f" The host gave {_stolen(lines):.1%} of the machine's time to others."
        cells = results.rows(lines)
        console.print(results.table(cells))
        if given.json:
            text = json.dumps({"about": about, "lines": [asdict(line) for line in lines]})
            given.json.write_text(text)
        if given.write:
            report.write(PAGE, "scaling", results.markdown(cells, about))
            console.print(f"written into {PAGE}")
    except BenchmarkError as error:
        console.print(f"nothing was written: {error}", style="red", markup=False)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.scaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--gateways", type=_numbers, default=[1, 2, 4, 8], help="default: 1,2,4,8")
    add("--models", type=_numbers, default=[4], help="names, each with a worker; default: 4")
    add("--connections", type=_number, default=48, help="for each gateway; default: 48")
    add("--seconds", type=_number, default=5, help="of each run; default: 5")
    add("--rounds", type=_number, default=5, help="interleaved; default: 5")
    add("--server-cpus", type=_processors, help="as 0-11; default: three quarters of the cores")
    add("--client-cpus", type=_processors, help="wrk's, as 12-15; default: the other cores")
    add("--json", type=Path, help="a file for all that was measured")
    add("--write", action="store_true", help=f"write the table into docs/{PAGE.name}")
    add("--anyway", action="store_true", help="write even if the machine is busy")
    add("serve", nargs="*", metavar="-- OPTION", help="options for ds-serve")
    return parser


def _number(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 1 or more")
    return int(text)


def _numbers(text: str) -> list[int]:
    return sorted({_number(each) for each in text.split(",")})


def _processors(text: str) -> frozenset[int]:
    try:
        return cpus.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _plan(given: argparse.Namespace) -> Plan:
    server, client = cpus.divide(cpus.cores())
    if given.server_cpus:
        client = (server | client) - given.server_cpus
        server = given.server_cpus
    if given.client_cpus:
        client = given.client_cpus
        server = given.server_cpus or (server - client)
    if not server or not client:
        raise BenchmarkError("no processor is left: give both, --server-cpus and --client-cpus")
    return Plan(given.connections, given.seconds, server, client, given.serve)


def _about(plan: Plan, tool: wrk.Wrk, rounds: int) -> str:
    found = cpus.cores()
    processors = sum(map(len, found))
    threads = f"{processors} processors are threads of {len(found)} cores; "
    options = f" with `{' '.join(plan.serve)}`" if plan.serve else ""
    return (
        f"{report.machine({'wrk': tool.version})} "
        f"{threads if processors > len(found) else ''}ds-serve{options} has "
        f"{len(plan.server_cpus)} processors, wrk {len(plan.client_cpus)}. "
        f"{plan.connections} connections for each gateway; {rounds} interleaved rounds of "
        f"{plan.seconds} s."
    )


def _stolen(lines: Sequence[Line]) -> float:
    return median(sample.stolen for line in lines for sample in line.samples)


def _measured(given: argparse.Namespace, plan: Plan, tool: wrk.Wrk) -> list[Line]:
    lines = [Line(models, count) for models in given.models for count in given.gateways]
    with tempfile.TemporaryDirectory() as folder, Progress(transient=True) as progress:
        path = Path(folder) / "mlp.onnx"
        model.write(path)
        task = progress.add_task("measuring", total=given.rounds * len(lines))
        for _ in range(given.rounds):
            for line in lines:
                line.samples.append(measure(path, line.models, line.gateways, plan, tool))
                progress.advance(task)
    return lines


if __name__ == "__main__":
    sys.exit(main())
