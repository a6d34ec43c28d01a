"""What carries ds-serve's gRPC, compared: unary calls and streams, beside Triton where it is.

    python -m loadtests.grpc_servers                            all that are installed, 5 rounds
    python -m loadtests.grpc_servers native pyvoy --repeats 9   some of them

Each round starts ds-serve anew with each `--grpc-server`. The last column says how many times as
many requests the first of them answered.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from loadtests.peers import environments, processes, results
from loadtests.peers.base import Launch, Peer, Setup
from loadtests.peers.dialects import KServe
from loadtests.peers.ds_serve import DsServe
from loadtests.peers.measure import CONNECTIONS, Plan, Runner, find
from loadtests.peers.triton import Triton
from loadtests.peers.workloads import MLP
from loadtests.perf_analyzer import BenchmarkError

PROTOCOLS = ("gRPC unary", "gRPC stream")
CARRIERS = ("native", "grpcio", "pyvoy")
TRITON = Triton()
LISTEN_SECONDS = 2.0
WIDTH = 160


class Carried(KServe):
    """ds-serve with one of its gRPC servers."""

    protocols: Sequence[str] = ("JSON", *PROTOCOLS)

    def __init__(self, carrier: str) -> None:
        self._served = DsServe()
        self.key = self.name = self.carrier = carrier
        self.settings = self._served.settings
        self.chosen = f"--grpc-server {carrier}"

    def launch(self, setup: Setup) -> Launch:
        launch = self._served.launch(setup)
        return Launch([*launch.command, "--grpc-server", self.carrier], launch.environment)


def main(arguments: Sequence[str] | None = None) -> int:
    given = _arguments(arguments)
    console = Console()
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.default_int_handler)
    try:
        plan = Plan(
            peers=peers(given.names),
            works=[MLP],
            protocols=PROTOCOLS,
            connections=tuple(given.connections),
            repeats=given.repeats,
            seconds=given.seconds,
            warm_up=1.0,
        )
        return _run(plan, given.anyway, console)
    except BenchmarkError as error:
        console.print(str(error), style="red", markup=False)
        return 1


def peers(names: Iterable[str] = ()) -> list[Peer]:
    """Those named, or all that are installed. Raises BenchmarkError for an unknown name."""
    known: dict[str, Peer] = {carrier: Carried(carrier) for carrier in CARRIERS}
    known[TRITON.key] = TRITON
    chosen = list(names) or [name for name in known if _installed(name)]
    if unknown := [name for name in chosen if name not in known]:
        raise BenchmarkError(f"no server is called {', '.join(unknown)}; there are {[*known]}")
    return [known[name] for name in chosen]


def _installed(name: str) -> bool:
    if name == TRITON.key:
        return environments.installed(name)
    return name != "pyvoy" or find_spec(name) is not None


def _run(plan: Plan, anyway: bool, console: Console) -> int:
    others = processes.share_of_others(LISTEN_SECONDS)
    if others > 0.1 and not anyway:
        raise BenchmarkError(
            f"nothing measured: other programs take {others:.0%} of the machine; "
            "--anyway measures all the same"
        )
    with tempfile.TemporaryDirectory() as folder, Progress(console=console) as progress:
        task = progress.add_task("measuring", total=plan.steps())
        runner = Runner(plan, find(plan), lambda name: progress.update(task, advance=1))
        runner.run(Path(folder))
    console = Console(width=max(console.width, WIDTH))
    rows = [row for row in runner.results.rows(MLP.name) if row.key.protocol in PROTOCOLS]
    if rows:
        base = plan.peers[0].name
        columns = [f"{base} is" if name == "ds-serve is" else name for name in results.COLUMNS]
        table = Table(*columns, title=MLP.title)
        for cells in results.cells(rows, base):
            table.add_row(*cells)
        console.print(table)
    for refusal in runner.results.refusals:
        console.print(f"no row: {refusal}", style="red", markup=False)
    return 1 if runner.results.refusals else 0


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.grpc_servers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help=f"of {', '.join(CARRIERS)} and {TRITON.key}")
    add("--connections", type=int, nargs="+", default=list(CONNECTIONS), help="default: 1 16 64")
    add("--repeats", type=int, default=5, help="interleaved rounds; default: 5")
    add("--seconds", type=float, default=3.0, help="of each measurement; default: 3")
    add("--anyway", action="store_true", help="even if the machine is busy")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
