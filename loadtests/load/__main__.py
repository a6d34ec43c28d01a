"""Run a load test, print what was wanted and seen, and end with 0 if it held, 1 if not.

python -m loadtests.load --list
python -m loadtests.load mlp --duration 10 --report report.html
python -m loadtests.load soak --duration 2h
python -m loadtests.load mlp --server 10.0.0.5 --master 4      users on other machines, which run
python -m loadtests.load --worker --master-host 10.0.0.4       this, once for each core
"""

from __future__ import annotations

# The first import of ours: it patches what the others import.
from loadtests.load import patched  # isort: skip  # noqa: F401

import argparse
import logging
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, get_args

from rich.console import Console

from loadtests.load import memory, report, run, scenario, shapes, thresholds
from loadtests.load.memory import Sampler
from loadtests.load.scenario import Protocol, Scenario, ScenarioError
from loadtests.load.users import Plan
from loadtests.perf_analyzer import BenchmarkError
from loadtests.server import free_ports, running

ROOT = Path(__file__).resolve().parents[2]
SILENT = logging.CRITICAL + 1
"""For locust's log: what it has to say of failures is in the report."""
MASTER_PORT = 5557
WORKERS_SECONDS = 60.0
WORKER_END_SECONDS = 20.0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO if given.verbose else SILENT)
    console = Console(soft_wrap=True)
    # Ended by a signal, it still stops the server and the workers that it has started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if given.list:
            for name in scenario.names():
                console.print(f"{name:14}{scenario.read(name).about}", highlight=False)
            return 0
        if given.worker:
            return run.work(given.master_host, given.master_port)
        if given.scenario is None:
            raise ScenarioError("which scenario? --list says what there is")
        return _load(given, console)
    except (ScenarioError, BenchmarkError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _load(given: argparse.Namespace, console: Console) -> int:
    one = _scenario(given)
    if given.master and not given.server:
        raise ScenarioError("--master needs --server, at an address that the workers reach")
    for path in (given.report, given.markdown):
        report.check(path)
    console.print(_plan_line(one), highlight=False)
    with ExitStack() as stack:
        plan, sampler = stack.enter_context(_server(one, given))
        load = run.LoadRun(one, plan, sampler, lambda line: console.print(line, highlight=False))
        if given.workers or given.master:
            stack.enter_context(_workers(load, given))
        else:
            load.here()
        outcome = load.measure()
    verdicts = thresholds.judge(outcome.figures, one.require, one.target, given.strict)
    report.show(console, outcome, verdicts)
    if given.report:
        report.write(given.report, load.environment, one, outcome, verdicts)
        console.print(f"report: {given.report}", highlight=False)
    if given.markdown:
        given.markdown.write_text(report.markdown(one, outcome, verdicts))
    held = thresholds.passed(verdicts) and not outcome.problems
    console.print("passed" if held else "failed", style="green" if held else "red")
    return 0 if held else 1


def _scenario(given: argparse.Namespace) -> Scenario:
    names = ("users", "rate", "low", "shape", "protocol", "warmup", "timeout", "check", "model")
    changes: dict[str, Any] = {n: v for n in names if (v := getattr(given, n)) is not None}
    if given.duration:
        changes["duration"] = scenario.seconds(given.duration)
    for name in ("require", "target", "options"):
        changes[name] = scenario.pairs(getattr(given, name))
    if given.serve:
        changes["serve"] = shlex.split(given.serve)
    return scenario.changed(scenario.read(given.scenario), changes)


def _plan_line(one: Scenario) -> str:
    load = f"{one.rate:,.0f} requests/s from " if one.rate else ""
    low = "" if one.shape == "constant" else f" from {one.low_share * one.peak:,.0f}"
    return (
        f"{one.about}: {one.protocol}, {one.shape}{low}, {load}{one.users} users, {one.seconds:g} s"
    )


@contextmanager
def _server(one: Scenario, given: argparse.Namespace) -> Iterator[tuple[Plan, Sampler | None]]:
    """The server to load: the one that was named, or one for the length of the run."""
    if given.server:
        http, grpc = (f"{given.server}:{port}" for port in (given.http_port, given.grpc_port))
        yield _plan(one, http, grpc, one.model or one.requests), _sampler(given.server_pid)
        return
    with tempfile.TemporaryDirectory(prefix="loadtest-") as folder:
        made = _models(one, Path(folder))
        flags = [flag for value in made[1:] for flag in ("--model", value)]
        before = memory.children()
        with running(made[0], [*flags, *one.serve]) as server:
            model = one.model or made[0].partition("=")[0]
            pid = memory.new_child(before)
            yield _plan(one, server.http, server.grpc, model), _sampler(pid)


def _models(one: Scenario, folder: Path) -> list[str]:
    try:
        made = scenario.module(one.requests).model(folder, **one.options)
    except (TypeError, ValueError) as error:
        raise ScenarioError(f"the model of {one.requests!r} cannot be made: {error}") from None
    return [made] if isinstance(made, str) else list(made)


def _sampler(pid: int | None) -> Sampler | None:
    return Sampler(pid) if pid else None


def _plan(one: Scenario, http: str, grpc: str, model: str) -> Plan:
    return Plan(
        protocol=one.protocol,
        requests=one.requests,
        http=http,
        grpc=grpc,
        model=model,
        pace=one.rate / one.users if one.rate else None,
        timeout=one.timeout,
        check=one.check,
    )


@contextmanager
def _workers(load: run.LoadRun, given: argparse.Namespace) -> Iterator[None]:
    """Processes of users: on this machine, or awaited from others."""
    if given.master:
        load.spread("*", given.master_port, given.master, seconds=600)
        yield
        return
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "loadtests.load", "--worker", "--master-port", str(port)]
    processes = [subprocess.Popen(command, cwd=ROOT) for _ in range(given.workers)]
    try:
        load.spread("127.0.0.1", port, given.workers, seconds=WORKERS_SECONDS)
        yield
        for process in processes:
            process.wait(WORKER_END_SECONDS)
    except subprocess.TimeoutExpired:
        raise ScenarioError("a worker did not end") from None
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.load",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("scenario", nargs="?", help="a name from --list, or a .toml file")
    add("--list", action="store_true", help="say what scenarios there are")
    add("--report", type=Path, metavar="FILE", help="write locust's HTML report with plots")
    add("--markdown", type=Path, metavar="FILE", help="write the table there, as Markdown")
    add("--strict", action="store_true", help="targets are required too: on hardware that can")
    add("--verbose", action="store_true", help="what locust has to say")
    load = parser.add_argument_group("load, instead of what the scenario says").add_argument
    load("--users", type=int)
    load("--rate", type=float, help="requests/s at full load, of all users together")
    load("--low", type=float, help="load before a step, around a spike, of a soak")
    load("--duration", help="90, 90s, 30m or 2h")
    load("--warmup", type=float, metavar="SECONDS", help="at the start, not counted")
    load("--shape", choices=get_args(shapes.Shape))
    load("--protocol", choices=get_args(Protocol))
    load("--timeout", type=float, metavar="SECONDS", help="of one request")
    load("--check", type=int, metavar="N", help="check one answer in N")
    load("--require", action="append", default=[], metavar="NAME=VALUE", help="such as p99=50")
    load("--target", action="append", default=[], metavar="NAME=VALUE")
    load("--option", action="append", default=[], dest="options", metavar="NAME=VALUE",
         help="for the scenario's model")  # fmt: skip
    at = parser.add_argument_group("server; one is started unless --server is given").add_argument
    at("--serve", metavar="OPTIONS", help='for the one that is started: --serve="--gateways 2"')
    at("--server", metavar="HOST", help="load the one that runs there")
    at("--http-port", type=int, default=8000)
    at("--grpc-port", type=int, default=8001)
    at("--server-pid", type=int, metavar="PID", help="watch its memory; on this machine only")
    at("--model", metavar="NAME", help="what it calls the model")
    many = parser.add_argument_group("users in several processes").add_argument
    many("--workers", type=int, default=0, metavar="N", help="on this machine")
    many("--master", type=int, default=0, metavar="N", help="wait for N from other machines")
    many("--worker", action="store_true", help="be one; the master says what to do")
    many("--master-host", default="127.0.0.1", metavar="HOST")
    many("--master-port", type=int, default=MASTER_PORT, metavar="PORT")
    return parser


if __name__ == "__main__":
    sys.exit(main())
