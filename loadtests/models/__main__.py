"""python -m loadtests.models {fraud,recommender,bench}: builds the models, measures them."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from loadtests import report
from loadtests.models import bench, fraud, table
from loadtests.models.progress import bar
from loadtests.perf_analyzer import BenchmarkError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "scenarios.md"


def main(words: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(words)
    try:
        given.does(given)
    except (table.TableError, BenchmarkError, ValueError) as error:
        return _failed(str(error))
    except OSError as error:
        return _failed(f"{error.filename or given.output}: {error.strerror}")
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtests.models", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="fraud | recommender | bench")
    _fraud_flags(commands.add_parser("fraud", help="write the fraud model"))
    _recommender_flags(commands.add_parser("recommender", help="write the recommender"))
    _bench_flags(commands.add_parser("bench", help="what a row costs ONNX Runtime by itself"))
    return parser


def _fraud_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", type=Path, required=True, help="the ONNX file to write")
    parser.set_defaults(does=_fraud)


def _recommender_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", type=Path, required=True, help="the ONNX file to write")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--table-mb", type=float, help=f"of embeddings; default: {table.DEFAULT_MB}")
    size.add_argument("--table-gb", type=float, help="the same in GB, such as 3.2")
    parser.add_argument(
        "--external",
        action="store_true",
        help="keep the table in OUTPUT.data, as tables above 500 MB are kept anyway",
    )
    parser.set_defaults(does=_recommender)


def _bench_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("scenario", choices=sorted(bench.SCENARIOS))
    parser.add_argument("--seconds", type=float, default=2.0, help="of each; default: 2")
    parser.add_argument("--threads", type=int, default=1, help="of ONNX Runtime; default: 1")
    parser.add_argument("--table-mb", type=float, help="of the recommender")
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE.name}")
    parser.set_defaults(does=_bench)


def _fraud(given: argparse.Namespace) -> None:
    fraud.write(given.output)
    _say(given.output)


def _recommender(given: argparse.Namespace) -> None:
    megabytes = given.table_mb if given.table_mb is not None else table.DEFAULT_MB
    if given.table_gb is not None:
        megabytes = given.table_gb * 1000
    with bar(f"writing {given.output.name}") as tell:
        table.write(given.output, megabytes, given.external, tell)
    _say(given.output)


def _bench(given: argparse.Namespace) -> None:
    if given.table_mb is not None and given.scenario != "recommender":
        raise BenchmarkError(f"--table-mb is for the recommender; {given.scenario} has no table")
    if given.seconds <= 0 or given.threads < 1:
        raise BenchmarkError(
            f"--seconds {given.seconds:g}, --threads {given.threads}: must be above 0"
        )
    about = report.machine({})
    options = {} if given.table_mb is None else {"table_mb": given.table_mb}
    with tempfile.TemporaryDirectory() as folder:
        model = bench.SCENARIOS[given.scenario].model(Path(folder), **options)
        path = Path(model.partition("=")[2])
        costs = bench.measure(given.scenario, path, given.seconds, given.threads)
    text = bench.markdown(costs)
    print(text)
    if given.write:
        about = f"{about} Threads of the engine: {given.threads}."
        report.write(PAGE, given.scenario, f"{about}\n\n{text}")


def _say(path: Path) -> None:
    beside = path.with_name(f"{path.name}.data")
    files = [path, beside] if beside.exists() else [path]
    for file in files:
        print(f"{file}: {file.stat().st_size / 1e6:,.2f} MB")


def _failed(why: str) -> int:
    Console(stderr=True).print(f"error: {why}", style="red", markup=False, soft_wrap=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
