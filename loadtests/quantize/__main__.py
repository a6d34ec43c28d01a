"""`python -m loadtests.quantize [NAME ...]`: real models through the pipeline, and the tables."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from rich.console import Console

from ds_quantize import report
from ds_quantize.api import Settings, quantize
from ds_quantize.errors import QuantizeError
from ds_quantize.evaluate import Options
from ds_quantize.progress import reporter
from loadtests.perf_analyzer import BenchmarkError
from loadtests.quantize import Case, recipe, results

TRAINED = (
    "fuse", "finetune", "qat-int8", "qat-int8-tensorrt", "qat-int4", "prune-l1", "prune-l2",
    "prune-distill", "prune-distill-int8", "magnitude", "sparse-2-4", "sparse-2-4-int8",
    "sparse-block", "distill", "distill-features",
)  # fmt: skip
"""The recipes for PyTorch modules, as they are shipped; the last two with a student."""

CASES = {
    "magika": ("magika", 3000),
    "ocr": ("ocr", 400),
    "minilm": ("minilm", 600),
    "minilm-mixed": ("minilm", 600),
    "resnet50": ("resnet50", 64),
    "llm-w8a8": ("smollm2", 60),
    "llm-int4-gptq": ("smollm2", 60),
    "llm-int4-rtn": ("smollm2", 60),
    "llm-openvino-int8": ("smollm2", 60),
    "llm-openvino-int4": ("smollm2", 60),
    **{f"digits-{name}": ("digits", 500) for name in TRAINED},
}
"""Name, which is also the recipe's, to module and rows."""

PAGE = Path(__file__).resolve().parents[2] / "docs/quantize-results.md"


def main(words: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(words)
    console = Console()
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.work or Path(scratch)
        try:
            lines = [_measured(name, folder, given, console) for name in given.names or CASES]
        except (QuantizeError, BenchmarkError, ValueError, ImportError) as error:
            console.print(f"error: {error}", style="red", markup=False)
            return 1
    for table, own in results.tables(lines).items():
        console.print(results.markdown(table, own), markup=False, soft_wrap=True)
    if given.write:
        results.write(PAGE, lines)
    return 0 if all(line.verdict.passed for line in lines) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtests.quantize", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(CASES)}")
    parser.add_argument("--rows", type=int, default=0, help="of evaluation data; by default many")
    parser.add_argument("--seconds", type=float, default=2.0, help="to time each batch size for")
    parser.add_argument("--threads", type=int, default=0, help="by default all CPUs")
    parser.add_argument("--work", type=Path, help="keep data, stages and reports in this folder")
    parser.add_argument("--write", action="store_true", help=f"into {PAGE.name}")
    return parser


def _measured(name: str, folder: Path, given: argparse.Namespace, console: Console) -> results.Line:
    console.rule(name)
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    case = prepared(name, place, given.rows)
    options = Options(seconds=given.seconds)
    settings = Settings(
        work=folder / "stages", threads=given.threads, options=options, reporter=reporter(console)
    )
    made = quantize(
        case.model, case.recipe, case.calibration, evaluation=case.evaluation, settings=settings
    )
    line = results.line(case, made)
    console.print(report.write(place, line.evaluation, line.verdict, made.recipe, {}), markup=False)
    return line


def prepared(name: str, folder: Path, rows: int = 0) -> Case:
    """The model and its data, in that folder. Raises ValueError for a name that there is not."""
    if name not in CASES:
        raise ValueError(f"there is no {name!r}; there are {', '.join(CASES)}")
    module, usual = CASES[name]
    made: Case = import_module(f"loadtests.quantize.{module}").case(folder, rows or usual)
    return replace(made, recipe=recipe(name))


if __name__ == "__main__":
    sys.exit(main())
