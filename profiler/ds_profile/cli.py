"""The command line of `ds-profile`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import uvloop
from rich.console import Console

from ds_engines.errors import ServeError
from ds_profile import page, text, traces
from ds_profile.advice import Context, advise
from ds_profile.errors import ProfileError
from ds_profile.inputs import Wish, shape_of
from ds_profile.page import Report
from ds_profile.run import Plan, run
from ds_profile.server import busy_with_others
from ds_profile.stages import summarise
from ds_serve import __version__
from ds_serve.api import plan
from ds_serve.models import ModelSource
from ds_serve.settings import Settings

FAILURE, USAGE_ERROR = 1, 2


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="ds-profile",
        description="Where the time of requests to ds-serve goes, and which configuration is best.",
    )
    made.add_argument("--version", action="version", version=f"ds-profile {__version__}")
    commands = made.add_subparsers(dest="command", required=True)
    _add_run(commands.add_parser("run", help="serve a model under load and report the times"))
    _add_report(commands.add_parser("report", help="report the times of a trace file"))
    _add_tune(commands.add_parser("tune", help="search the configuration with the highest rate"))
    return made


def _add_load(to: argparse.ArgumentParser) -> None:
    to.add_argument("model", metavar="MODEL", help="what ds-serve --model takes, for tensors")
    to.add_argument("--protocol", choices=("http", "grpc"), default="http")
    to.add_argument("--rows", type=_positive, default=1, help="rows in a request (default: 1)")
    to.add_argument(
        "--shape",
        action="append",
        default=[],
        metavar="NAME=1x16",
        help="an input's whole shape, where the model leaves it free; may be repeated",
    )
    to.add_argument(
        "--inputs", type=Path, metavar="X.npz", help="one request's arrays, instead of made-up ones"
    )


def _add_run(to: argparse.ArgumentParser) -> None:
    _add_load(to)
    to.add_argument("--concurrency", type=_positive, default=16, help="requests in flight")
    to.add_argument("--seconds", type=_seconds, default=10.0, help="how long to measure")
    to.add_argument("--trace-rate", type=_positive, default=1, help="trace one request in so many")
    to.add_argument("--trace-file", type=Path, metavar="X", help="keep the traces in this file")
    to.add_argument("--no-layers", action="store_true", help="leave out the engine's own profile")
    _add_output(to)
    to.epilog = "What follows a double dash goes to ds-serve: -- --max-batch-size 8"


def _add_report(to: argparse.ArgumentParser) -> None:
    to.add_argument("trace", nargs="+", type=Path, metavar="TRACE.json")
    _add_output(to)


def _add_output(to: argparse.ArgumentParser) -> None:
    to.add_argument("-o", "--output", type=Path, metavar="X.html", help="write the report here too")


def _add_tune(to: argparse.ArgumentParser) -> None:
    _add_load(to)
    to.add_argument("--latency-ms", type=_seconds, required=True, help="the most that is allowed")
    to.add_argument(
        "--percentile", type=_percentile, default=99.0, help="of requests that keep it (default 99)"
    )
    to.add_argument("--trials", type=_positive, default=30, help="configurations to try")
    to.add_argument(
        "--concurrency",
        type=_concurrency,
        default=0,
        metavar="N|auto",
        help="requests in flight; auto (default): as many as the limit allows",
    )
    to.add_argument("--seconds", type=_seconds, default=4.0, help="of one measurement (default 4)")
    to.add_argument("--repeats", type=_positive, default=3, help="of each finalist (default 3)")
    to.add_argument("--most-gateways", type=_positive, default=0, help="gateways to try at most")
    to.add_argument("--most-instances", type=_positive, default=0, help="instances to try at most")
    to.add_argument(
        "--study", type=Path, metavar="X.db", help="keep the trials here, to go on from later"
    )
    to.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("config.pbtxt"),
        metavar="X.pbtxt",
        help="where to write the configuration (default: config.pbtxt)",
    )


def _positive(given: str) -> int:
    value = int(given)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
    return value


def _seconds(given: str) -> float:
    value = float(given)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{given} is not above 0")
    return value


def _percentile(given: str) -> float:
    value = float(given)
    if not 0 < value < 100:
        raise argparse.ArgumentTypeError(f"{given} is not between 0 and 100")
    return value


def _concurrency(given: str) -> int:
    return 0 if given == "auto" else _positive(given)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Exit status: 1 where there is nothing to report, 2 for a wrong call."""
    own, flags = _divided(sys.argv[1:] if argv is None else argv)
    made = parser()
    arguments = made.parse_args(own)
    if flags and arguments.command != "run":
        made.error(f"{arguments.command} takes no flags for ds-serve: {' '.join(flags)}")
    arguments.flags = flags
    try:
        return _COMMANDS[arguments.command](arguments, text.console())
    except (ProfileError, ServeError) as error:
        print(f"ds-profile: {error}", file=sys.stderr)
        return FAILURE
    except KeyboardInterrupt:
        return 130


def _divided(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """What is before the first double dash, and what is behind it."""
    given = list(argv)
    if "--" not in given:
        return given, []
    place = given.index("--")
    return given[:place], given[place + 1 :]


def _run(arguments: argparse.Namespace, console: Console) -> int:
    _check_folder(arguments.output)
    if busy := busy_with_others():
        console.print(busy)
    plan = Plan(
        source=_tensor_model(arguments.model),
        protocol=arguments.protocol,
        concurrency=arguments.concurrency,
        seconds=arguments.seconds,
        wish=_wish(arguments),
        trace_rate=arguments.trace_rate,
        trace_file=arguments.trace_file,
        layers=not arguments.no_layers,
        flags=arguments.flags,
    )
    _tell(uvloop.run(run(plan)), console, arguments.output)
    return 0


def _report(arguments: argparse.Namespace, console: Console) -> int:
    stages = summarise(traces.read(arguments.trace))
    if not stages:
        names = ", ".join(map(str, arguments.trace))
        raise ProfileError(f"no trace of a request that was computed is in {names}")
    title = f"ds-profile: {arguments.trace[0].name}"
    report = Report(title, stages, advise(stages[0], Context(), None))
    _tell(report, console, arguments.output)
    return 0


def _tune(arguments: argparse.Namespace, console: Console) -> int:
    try:
        from ds_profile.tune.command import Goal, tune  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ProfileError(
            f"tuning needs the package {error.name!r}: pip install 'ds-serve[profile]'"
        ) from None
    _check_folder(arguments.output)
    _check_folder(arguments.study)
    goal = Goal(
        source=_tensor_model(arguments.model),
        protocol=arguments.protocol,
        wish=_wish(arguments),
        latency_ms=arguments.latency_ms,
        percentile=arguments.percentile,
        concurrency=arguments.concurrency,
        seconds=arguments.seconds,
        most_gateways=arguments.most_gateways,
        most_instances=arguments.most_instances,
    )
    return tune(
        goal, arguments.trials, arguments.repeats, arguments.study, arguments.output, console
    )


_COMMANDS = {"run": _run, "report": _report, "tune": _tune}


def _tensor_model(argument: str) -> ModelSource:
    _, sources = plan(Settings(), [argument])
    if not sources:
        raise ProfileError(f"{argument} is a repository of models; one model is profiled at a time")
    source = sources[0]
    if source.task != "tensor":
        raise ProfileError(f"model {source.name!r} writes text; only tensor models are profiled")
    return source


def _wish(arguments: argparse.Namespace) -> Wish:
    shapes = dict(shape_of(each) for each in arguments.shape)
    return Wish(rows=arguments.rows, shapes=shapes, file=arguments.inputs)


def _tell(report: Report, console: Console, output: Path | None) -> None:
    for name, value in report.facts.items():
        console.print(f"{name}: {value}")
    for stages in report.stages:
        console.print(text.stages_table(stages))
    if report.layers is not None:
        console.print(text.layers_table(report.layers, report.batch))
        console.print(text.operators_table(report.layers))
    for each in report.advice:
        console.print(f"- {each}")
    if output is not None:
        _write(output, page.render(report))
        console.print(f"The report is in {output}.")


def _check_folder(path: Path | None) -> None:
    """Before the work, rather than after it."""
    if path is not None and not path.parent.is_dir():
        raise ProfileError(f"{path} cannot be written: there is no folder {path.parent}")


def _write(path: Path, content: str) -> None:
    try:
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise ProfileError(f"{path} cannot be written: {error.strerror}") from None


if __name__ == "__main__":
    sys.exit(main())
