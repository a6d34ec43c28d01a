"""The command line of `ds-quantize`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from ds_engines.errors import ServeError
from ds_quantize import libraries
from ds_quantize.keeping import USUAL_GB, VARIABLE

FAILURE, USAGE_ERROR, INTERRUPTED = 1, 2, 130

COMMANDS = {
    "run": "ds_quantize.commands.run:run",
    "recipes": "ds_quantize.commands.recipes:recipes",
    "methods": "ds_quantize.commands.recipes:show_methods",
    "compare": "ds_quantize.commands.compare:compare",
    "export": "ds_quantize.commands.export:run",
    "cascade": "ds_quantize.commands.cascade:run",
    "show": "ds_quantize.commands.show:show",
    "verify": "ds_quantize.commands.show:verify",
}
"""Command to what does it: `function(arguments)` gives the exit status."""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="ds-quantize",
        description="Make a model smaller and faster, prove that it is still right, and put it "
        "into a model repository.",
        epilog="`ds-quantize MODEL ...` is `ds-quantize run MODEL ...`.",
    )
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_run(commands.add_parser("run", help="apply a recipe to a model (the default)"))
    recipes = commands.add_parser("recipes", help="list the recipes, or explain one")
    recipes.add_argument("name", nargs="?", metavar="NAME|FILE.yaml")
    methods = commands.add_parser("methods", help="list what a recipe's steps can be")
    methods.add_argument("name", nargs="?", metavar="METHOD")
    _add_compare(commands.add_parser("compare", help="two models on the same data"))
    _add_export(commands.add_parser("export", help="freeze a PyTorch module to ONNX or .pt2"))
    _add_cascade(commands.add_parser("cascade", help="a small model before a large one, as one"))
    show = commands.add_parser("show", help="what is known of a model that was promoted")
    show.add_argument("path", type=Path, metavar="models/NAME[/N]")
    verify = commands.add_parser("verify", help="whether versions are what was judged, and passed")
    verify.add_argument("paths", type=Path, nargs="+", metavar="models/NAME[/N]")
    return made


def _add_run(to: argparse.ArgumentParser) -> None:
    to.add_argument(
        "model",
        metavar="MODEL",
        help="an ONNX file, FILE.py:FACTORY, a .pt2, a Hugging Face folder",
    )
    way = to.add_mutually_exclusive_group(required=True)
    way.add_argument("--recipe", metavar="NAME|FILE.yaml", help="see `ds-quantize recipes`")
    way.add_argument(
        "--auto", action="store_true", help="the cheapest recipe whose result passes its gate"
    )
    to.add_argument("--calibration", metavar="DATA", help="what ranges and training are based on")
    _add_promotion(to)


def _add_cascade(to: argparse.ArgumentParser) -> None:
    to.add_argument("small", metavar="SMALL", help="an ONNX file or models/NAME[/N]")
    to.add_argument("large", metavar="LARGE", help="what answers where SMALL is not sure")
    to.add_argument(
        "--threshold",
        default="auto",
        metavar="auto|P",
        help="the probability from which SMALL's answer is taken; auto: as low as LARGE's accuracy "
        "lets it be",
    )
    to.add_argument(
        "--calibration",
        metavar="DATA",
        help="what the threshold is chosen on (default: every other row of the evaluation data)",
    )
    _add_promotion(to)


def _add_promotion(to: argparse.ArgumentParser) -> None:
    to.add_argument("-o", "--output", type=Path, required=True, metavar="models/NAME")
    _add_proof(to)
    to.add_argument(
        "--limit",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a limit of the gate in place of the recipe's, such as max_accuracy_drop=0.02",
    )
    to.add_argument(
        "--keep-failed",
        action="store_true",
        help="write a result that fails the gate too; no server loads it",
    )
    to.add_argument("--work", type=Path, metavar="DIR", help="where stages are kept")
    to.add_argument(
        "--keep",
        type=_gigabytes,
        metavar="GB",
        help=f"how much of them is kept (default: {USUAL_GB:.0f}, or {VARIABLE})",
    )
    to.add_argument("--seed", type=int, default=0, help="of what is random (default: 0)")


def _add_proof(to: argparse.ArgumentParser) -> None:
    to.add_argument(
        "--evaluation", required=True, metavar="DATA", help="what the result is judged by"
    )
    to.add_argument("--metric", default="", help="top-1, cosine, ... or FILE.py:FUNCTION")
    to.add_argument("--threads", type=_count, default=0, help="CPUs to use (default: all)")
    to.add_argument(
        "--seconds", type=_seconds, default=1.0, help="of each timing of an engine (default: 1)"
    )


def _add_compare(to: argparse.ArgumentParser) -> None:
    for name, meaning in (("a", "the one to compare with"), ("b", "the candidate")):
        to.add_argument(name, metavar=name.upper(), help=f"{meaning}: a file or models/NAME[/N]")
    _add_proof(to)
    to.add_argument("-o", "--output", type=Path, metavar="DIR", help="write the report here too")


def _add_export(to: argparse.ArgumentParser) -> None:
    to.add_argument("model", metavar="FILE.py:FACTORY")
    to.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        action="append",
        metavar="PATH",
        help="where to write to; .pt2 where it ends so, else ONNX; may be given several times",
    )
    to.add_argument("--format", choices=("onnx", "pt2"), help="whatever the path's ending is")
    to.add_argument(
        "--calibration", metavar="DATA", help="example inputs, where the factory has none"
    )
    to.add_argument("--threads", type=_count, default=0, help="CPUs to use (default: all)")
    to.add_argument("--seconds", type=_seconds, default=1.0, help="of each timing (default: 1)")


def _count(given: str) -> int:
    value = int(given)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is below 0")
    return value


def _seconds(given: str) -> float:
    value = float(given)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{given} is not above 0")
    return value


def _gigabytes(given: str) -> float:
    value = float(given)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{given} is below 0")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Exit status: 1 where something failed, the gate too, 2 for a wrong call."""
    arguments = parser().parse_args(_with_command(sys.argv[1:] if argv is None else argv))
    try:
        return _command(arguments.command)(arguments)
    except ServeError as error:
        print(f"ds-quantize: {error}", file=sys.stderr)
        return FAILURE
    except KeyboardInterrupt:
        print("ds-quantize: interrupted; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return FAILURE


def _with_command(given: Sequence[str]) -> list[str]:
    """`run` is left out by most; a model called as a command is is given as ./recipes."""
    words = list(given)
    first = words[0] if words else "--help"
    return words if first in COMMANDS or first in ("-h", "--help") else ["run", *words]


def _command(name: str) -> Callable[[argparse.Namespace], int]:
    module, _, function = COMMANDS[name].partition(":")
    try:
        found: Callable[[argparse.Namespace], int] = getattr(import_module(module), function)
    except ImportError as error:
        if (error.name or "").startswith("ds_"):
            raise
        raise libraries.missing(error, "quantize", name) from None
    return found


if __name__ == "__main__":
    sys.exit(main())
