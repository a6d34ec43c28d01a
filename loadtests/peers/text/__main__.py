"""ds-serve beside other text servers: the same model, the same chats, the same client.

    python -m loadtests.peers install transformers vllm     1.2 and 3.5 GB
    python -m loadtests.peers.text                          measures, and prints a table
    python -m loadtests.peers.text transformers --clients 1,8 --repeats 1

A server that failed gets no row, and is named with the reason; the exit status is 1 then.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from loadtests import report
from loadtests.peers import environments, processes
from loadtests.peers.text import measure, results
from loadtests.peers.text.measure import TextPlan, TextResults
from loadtests.peers.text.servers import BASE, TEXT_PEERS
from loadtests.perf_analyzer import BenchmarkError

PAGE = Path(__file__).resolve().parents[3] / "docs" / "peers.md"
LISTEN_SECONDS = 2.0
WIDTH = 160
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    given = _arguments(arguments)
    console = Console()
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.default_int_handler)
    try:
        return _run(given, console)
    except BenchmarkError as error:
        _say(console, str(error))
        return 1
    except KeyboardInterrupt:
        _say(console, "interrupted; all servers are stopped")
        return INTERRUPTED


def _run(given: argparse.Namespace, console: Console) -> int:
    others = processes.share_of_others(LISTEN_SECONDS)
    if others > given.quiet and not given.anyway:
        raise BenchmarkError(
            f"nothing measured: other programs take {others:.0%} of the machine, more than "
            f"{given.quiet:.0%}; --anyway measures all the same"
        )
    plan = _plan(given)
    about = _about(plan)
    found = _measured(plan, console)
    if not given.anyway and (others := found.others()) > given.quiet:
        raise BenchmarkError(f"no table: other programs took {others:.0%} of the machine; --anyway")
    rows = found.rows()
    if rows:
        Console(width=max(console.width, WIDTH)).print(results.table(rows, BASE.name))
    refusals = [f"{name}: {why}" for name, why in found.refusals.items()]
    for refusal in refusals:
        _say(console, f"no row: {refusal}")
    if given.json:
        text = json.dumps(results.as_json(rows, refusals, about), indent=1)
        given.json.write_text(text + "\n")
    if refusals:
        return 1
    if given.write:
        report.write(PAGE, "text", results.markdown(rows, BASE.name, about))
        console.print(f"written into {PAGE}")
    return 0


def _measured(plan: TextPlan, console: Console) -> TextResults:
    with Progress(console=console) as progress:
        task = progress.add_task("measuring", total=plan.repeats * len(plan.peers))

        def advance(name: str) -> None:
            progress.update(task, advance=1, description=name)

        return measure.run(plan, advance)


def _about(plan: TextPlan) -> str:
    pins = [environments.requirements().get(peer.key, [])[:1] for peer in plan.peers]
    servers = ", ".join(pin for first in pins for pin in first)
    return (
        f"{report.machine({})} Servers: {servers}. {plan.repeats} interleaved repeats of "
        f"{plan.seconds:g} s each, chats of {plan.tokens_in} tokens, answers of at most "
        f"{plan.tokens_out}."
    )


def _plan(given: argparse.Namespace) -> TextPlan:
    names = {*(given.names or TEXT_PEERS), BASE.key}
    return TextPlan(
        peers=[peer for key, peer in TEXT_PEERS.items() if key in names],
        clients=given.clients,
        repeats=given.repeats,
        seconds=given.seconds,
        warm_up=given.warm_up,
        tokens_in=given.tokens_in,
        tokens_out=given.tokens_out,
    )


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.peers.text",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    plan = TextPlan(())
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help=f"of {', '.join(TEXT_PEERS)}")
    add("--clients", type=_numbers, default=list(plan.clients), help="default: 1,8,32")
    add("--repeats", type=int, default=plan.repeats, help="interleaved rounds; default: 3")
    add("--seconds", type=float, default=plan.seconds, help="of each measurement; default: 20")
    add("--warm-up", type=float, default=plan.warm_up, help="seconds before those; default: 5")
    add("--tokens-in", type=int, default=plan.tokens_in, help="of a chat; default: 64")
    add("--tokens-out", type=int, default=plan.tokens_out, help="of an answer; default: 64")
    add("--quiet", type=float, default=0.1, help="share others may take; default: 0.1")
    add("--anyway", action="store_true", help="even if the machine is busy")
    add("--json", type=Path, metavar="FILE", help="every sample, for later comparison")
    add("--write", action="store_true", help=f"put a complete table into docs/{PAGE.name}")
    given = parser.parse_args(arguments)
    if unknown := [name for name in given.names if name not in TEXT_PEERS]:
        parser.error(f"no server is called {', '.join(unknown)}; there are {', '.join(TEXT_PEERS)}")
    return given


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def _say(console: Console, text: str) -> None:
    console.print(text, style="red", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
