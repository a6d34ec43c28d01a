"""ds-serve beside other servers: the same ONNX file, the same client, the same machine.

    python -m loadtests.peers install       an environment for each server, some 2 GB in all
    python -m loadtests.peers check         starts each server and compares its answers
    python -m loadtests.peers               measures, and prints a table for each workload
    python -m loadtests.peers join FILE...  one table from what several runs put into --json FILE

The others take names of servers; without, all are meant. Nothing is printed of what failed but why,
and nothing is measured on a machine that is busy; the exit status is 1 then.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from loadtests import report
from loadtests.peers import environments, processes, results, workloads
from loadtests.peers.base import Peer
from loadtests.peers.measure import CONNECTIONS, Plan, Runner, Tools, find
from loadtests.peers.registry import BASE, PEERS
from loadtests.peers.serving import Place, example, serving
from loadtests.perf_analyzer import PROTOCOLS, SHARED_MEMORY, BenchmarkError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "peers.md"
LISTEN_SECONDS = 2.0
WIDTH = 160
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    given = _arguments(arguments)
    console = Console()
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.default_int_handler)
    commands = {"install": _install, "check": _check, "run": _run, "join": _join}
    try:
        return commands[given.command](given, console)
    except BenchmarkError as error:
        _say(console, str(error))
        return 1
    except KeyboardInterrupt:
        _say(console, "interrupted; all servers are stopped")
        return INTERRUPTED


def _install(given: argparse.Namespace, console: Console) -> int:
    for name in given.names or environments.serving("tensors"):
        if name in environments.requirements():
            environments.install(name)
            console.print(f"{name}: {environments.python(name)}", highlight=False)
    return 0


def _check(given: argparse.Namespace, console: Console) -> int:
    """Start each server with each workload; its answers are compared before it counts."""
    plan = _plan(given)
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for work in plan.works:
            path = workloads.write(work, Path(folder))
            expected = example(work, path)
            for peer in plan.peers:
                try:
                    with serving(peer, work, path, expected, plan.place) as served:
                        right = ", ".join(served.checked)
                    console.print(f"{peer.name}, {work.name}: right over {right}")
                except BenchmarkError as error:
                    _say(console, f"{peer.name}, {work.name}: {error}")
                    failed += 1
    return 1 if failed else 0


def _run(given: argparse.Namespace, console: Console) -> int:
    plan = _plan(given)
    tools = find(plan)
    others = processes.share_of_others(LISTEN_SECONDS, plan.cores)
    if others > given.quiet and not given.anyway:
        raise BenchmarkError(
            f"nothing measured: other programs take {others:.0%} of the machine, more than "
            f"{given.quiet:.0%}; --anyway measures all the same"
        )
    about = _about(plan, tools, others)

    def keep(found: results.Results) -> None:
        if given.json:
            text = json.dumps(results.as_json(found, BASE.name, about), indent=1)
            given.json.write_text(text + "\n")

    found = _measured(plan, tools, console, keep)
    if not given.anyway:
        for work in plan.works:
            found.refuse_noise(work.name, given.quiet)
    keep(found)
    return _give(given, plan.works, found, _joined([about]), console)


def _join(given: argparse.Namespace, console: Console) -> int:
    """What several runs have measured, each on cores of its own perhaps, as one."""
    try:
        parts = [json.loads(Path(name).read_text()) for name in given.names]
        found = results.from_json(parts)
        about = _joined([part["about"] for part in parts])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BenchmarkError(f"not what --json wrote: {error!r}") from None
    works = [
        work
        for name, work in workloads.WORKLOADS.items()
        if any(key.workload == name for key in found.samples)
    ]
    return _give(given, works, found, about, console)


def _joined(abouts: Sequence[dict[str, Any]]) -> str:
    """What is told of runs that were measured apart: the same once, what differs one by one."""
    told = dict.fromkeys(about["text"] for about in abouts)
    # Some runs needed one tool more, which is told last.
    texts = [one for one in told if not any(more.startswith(one[:-1] + ",") for more in told)]
    servers = dict.fromkeys(pin for about in abouts for pin in about["servers"])
    places = {about["where"] for about in abouts}
    where = places.pop() if len(places) == 1 else (
        "Servers were measured in groups, each group on cores of its own with its clients."
    )  # fmt: skip
    seconds = sorted({f"{about['seconds']:g}" for about in abouts}, key=float)
    parts = [*texts, f"Servers: {', '.join(servers)}.", where]
    parts.append(f"Each measurement took {' or '.join(seconds)} s.")
    return " ".join(filter(None, parts))


def _give(
    given: argparse.Namespace,
    works: Sequence[workloads.Workload],
    found: results.Results,
    about: str,
    console: Console,
) -> int:
    """Show the tables and write them where that is wanted; 1 where something has no row."""
    _show(works, found, console)
    if given.markdown:
        tables = [results.markdown(found.rows(work.name), BASE.name, about) for work in works]
        given.markdown.write_text("\n\n".join(tables) + "\n")
    if given.write and (not found.refusals or given.anyway):
        for work in works:
            rows = found.rows(work.name)
            text = f"{about} {found.remarks(work.name)}".strip()
            report.write(PAGE, work.name, results.markdown(rows, BASE.name, text))
        console.print(f"written into {PAGE}")
    return 1 if found.refusals else 0


def _measured(
    plan: Plan, tools: Tools, console: Console, keep: Callable[[results.Results], None]
) -> results.Results:
    with tempfile.TemporaryDirectory() as folder, Progress(console=console) as progress:
        task = progress.add_task("measuring", total=plan.steps())

        def advance(name: str) -> None:
            progress.update(task, advance=1, description=name)

        runner = Runner(plan, tools, advance, lambda: keep(runner.results))
        runner.run(Path(folder))
    return runner.results


def _show(works: Sequence[workloads.Workload], found: results.Results, console: Console) -> None:
    # A table is printed whole, even where no terminal says how wide it is.
    wide = Console(width=max(console.width, WIDTH))
    for work in works:
        if rows := found.rows(work.name):
            wide.print(results.table(work.title, rows, BASE.name))
            _say(console, found.crashed(work.name))
    for refusal in found.refusals:
        _say(console, f"no row: {refusal}")


def _about(plan: Plan, tools: Tools, others: float) -> dict[str, Any]:
    """What the paragraph above a table says, and what a program wants to know besides."""
    versions = {"wrk": tools.http.version}
    if tools.kserve:
        versions["perf_analyzer"] = tools.kserve.version
    pins = [environments.requirements().get(peer.key, [])[:1] for peer in plan.peers]
    changed = [
        f"{key}.{name}={value:g}"
        for key, settings in plan.place.settings.items()
        for name, value in settings.items()
    ]
    text = f" Changed: {', '.join(changed)}." if changed else ""
    text += f" ds-serve ran with `{shlex.join(plan.place.options)}`." if plan.place.options else ""
    return {
        "text": report.machine(versions, plan.cores) + text,
        "servers": [pin for first in pins for pin in first],
        "where": _where(plan),
        "seconds": plan.seconds,
        "ds-serve": version("ds-serve"),
        "others": f"{others:.3f}",
    }


def _where(plan: Plan) -> str:
    servers, clients = plan.place.pinned, plan.client_cores
    if servers == clients:
        return f"Servers and clients together on cores {sorted(servers)}." if servers else ""
    found = [f"Servers on cores {sorted(servers)}."] if servers else []
    return " ".join([*found, *([f"Clients on cores {sorted(clients)}."] if clients else [])])


def _plan(given: argparse.Namespace) -> Plan:
    names = given.names or list(PEERS)
    chosen: list[Peer] = [PEERS[name] for name in PEERS if name in {*names, BASE.key}]
    if given.command == "check" and given.names:
        chosen = [PEERS[name] for name in given.names]
    place = Place(given.server_cpus, _settings(given.set), tuple(shlex.split(given.serve)))
    return Plan(
        peers=chosen,
        works=[workloads.WORKLOADS[name] for name in given.workloads],
        protocols=tuple(given.protocols),
        connections=tuple(given.connections),
        repeats=given.repeats,
        seconds=given.seconds,
        warm_up=given.warm_up,
        place=place,
        client_cores=given.client_cpus,
    )


def _settings(words: Iterable[str]) -> dict[str, dict[str, float]]:
    """NAME.KEY=NUMBER, several times. Raises BenchmarkError naming what there is."""
    found: dict[str, dict[str, float]] = {}
    for word in words:
        left, _, number = word.partition("=")
        name, _, key = left.partition(".")
        there = [f"{peer.key}.{each}" for peer in PEERS.values() for each in peer.settings]
        if left not in there:
            raise BenchmarkError(f"--set {word}: there are {', '.join(there)}")
        try:
            found.setdefault(name, {})[key] = float(number)
        except ValueError:
            raise BenchmarkError(f"--set {word}: {number!r} is no number") from None
    return found


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    protocols = ["JSON", "bytes", *PROTOCOLS, *SHARED_MEMORY]
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("command", nargs="?", choices=("run", "install", "check", "join"), default="run")
    add("names", nargs="*", metavar="NAME", help=f"of {', '.join(PEERS)}; for join, files")
    add("--workloads", type=_list(workloads.WORKLOADS), default=list(workloads.WORKLOADS))
    add("--protocols", type=_list(protocols), default=[], help="default: each workload's own")
    add("--connections", type=_numbers, default=list(CONNECTIONS), help="default: 1,16,64")
    add("--repeats", type=int, default=5, help="interleaved rounds; default: 5")
    add("--seconds", type=float, default=5.0, help="of each measurement; default: 5")
    add("--warm-up", type=float, default=2.0, help="seconds before those; default: 2")
    add("--server-cpus", type=_cores, help="cores that servers keep to, such as 0-3,8")
    add("--client-cpus", type=_cores, help="cores that clients keep to")
    add("--set", action="append", default=[], metavar="NAME.KEY=NUMBER", help="triton.workers=2")
    add("--serve", default="", metavar="OPTIONS", help='for ds-serve, as in --serve="--x 1"')
    add("--quiet", type=float, default=0.1, help="share others may take; default: 0.1")
    add("--anyway", action="store_true", help="even if the machine is busy, or a row is missing")
    add("--json", type=Path, metavar="FILE", help="every sample, for later comparison")
    add("--markdown", type=Path, metavar="FILE", help="write the tables there, as Markdown")
    add("--write", action="store_true", help=f"put complete tables into docs/{PAGE.name}")
    given = parser.parse_args(arguments)
    if given.command == "join":
        return given
    there = [*PEERS, *environments.serving("text")] if given.command == "install" else [*PEERS]
    if unknown := [name for name in given.names if name not in there]:
        parser.error(f"no server is called {', '.join(unknown)}; there are {', '.join(there)}")
    return given


def _list(there: Iterable[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        words = [word.strip() for word in text.split(",")]
        if unknown := [word for word in words if word not in there]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: there are {', '.join(there)}")
        return words

    return parse


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def _cores(text: str) -> frozenset[int]:
    """0-3,8: as taskset takes them."""
    found: set[int] = set()
    for word in text.split(","):
        first, _, last = word.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def _say(console: Console, text: str) -> None:
    if text:
        console.print(text, style="red", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
