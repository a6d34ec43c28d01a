"""`python -m loadtests.vision`: a detector of boards' defects, trained, quantized, measured."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import onnx
import torch
from rich.console import Console

from ds_quantize.api import Quantized, Settings, quantize
from ds_quantize.errors import QuantizeError
from ds_quantize.evaluate import Options
from ds_quantize.progress import Reporter, reporter
from ds_quantize.torch_export import export
from loadtests.perf_analyzer import BenchmarkError
from loadtests.vision import data, example, page
from loadtests.vision.boards import Board
from loadtests.vision.measure import inspected
from loadtests.vision.net import Detector
from loadtests.vision.page import Line
from loadtests.vision.served import served
from loadtests.vision.train import Plan, trained

RECIPE = Path(__file__).with_name("int8.yaml")
CALIBRATION_BOARDS = 6
MOST_LOST = 0.01
"""By so much mAP@50 on whole boards may be lower with INT8."""


def main(words: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(words)
    console = Console()
    shown = reporter(console)
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.work or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            original, about = _detector(folder, given, shown)
            boards = list(data.photographs(data.EVALUATION, given.boards))
            made = quantized(original, boards, folder, given.models, given.threads, shown)
            assert made.version is not None
            versions = {"FP32": original, "INT8": made.version / "model.onnx"}
            lines = _measured(versions, boards, Path(scratch), given)
        except (QuantizeError, BenchmarkError) as error:
            console.print(f"error: {error}", style="red", markup=False)
            return 1
    tables = page.markdown(lines, len(boards), about)
    console.print(tables, markup=False, highlight=False, soft_wrap=True)
    if given.write:
        page.write(tables)
    console.print(f"ds-serve --model-repository {given.models.parent}", markup=False)
    return _verdict(lines, console)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtests.vision", description=__doc__)
    parser.add_argument("--steps", type=int, default=Plan().steps, help="of training")
    parser.add_argument("--boards", type=int, default=24, help="to measure on")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, help="keep the trained network in this folder")
    parser.add_argument(
        "--models",
        type=Path,
        default=example.MODELS / example.DETECTOR,
        help="the detector's folder in a repository, which gets a version (default: the example's)",
    )
    parser.add_argument("--no-serve", action="store_true", help="do not measure the server")
    parser.add_argument("--write", action="store_true", help=f"into {page.PAGE.name}")
    return parser


def _detector(folder: Path, given: argparse.Namespace, shown: Reporter) -> tuple[Path, str]:
    """The trained network as ONNX, and how it was made; an earlier run's, where it is kept."""
    path, told = folder / "detector.onnx", folder / "detector.txt"
    if not (path.exists() and told.exists()):
        plan = replace(Plan(), steps=given.steps, threads=given.threads)
        began, used = time.monotonic(), time.process_time()
        detector = trained(plan, shown)
        about = (
            f"Trained in {plan.steps} steps of {plan.batch} crops of {plan.boards} boards by "
            f"PyTorch {torch.__version__.partition('+')[0]}, threads: {plan.threads}; "
            f"{time.process_time() - used:.0f} s of CPU time, which took "
            f"{time.monotonic() - began:.0f} s."
        )
        write_onnx(detector, path)
        told.write_text(about)
    return path, told.read_text()


def write_onnx(detector: Detector, path: Path) -> Path:
    """For tiles of the example's size, any number of them. Convolutions are called as their weights
    are, and by the level of the pyramid where both have them, so that a recipe can name them.
    """
    size = example.tile_size()
    image = torch.zeros((2, 3, size, size), dtype=torch.uint8)
    export(detector, path, {"image": image}, outputs=("scores", "distances"))
    model = onnx.load(path)
    used: Counter[str] = Counter()
    for node in model.graph.node:
        if node.op_type == "Conv":
            weights = node.input[1].removesuffix(".weight")
            node.name = f"{weights}.{used[weights]}"
            used[weights] += 1
    onnx.save(model, path)
    return path


def quantized(
    original: Path,
    boards: Sequence[Board],
    folder: Path,
    output: Path,
    threads: int,
    shown: Reporter,
) -> Quantized:
    """INT8, promoted to the model's folder `output` where it is as good. Raises GateError."""
    calibration = data.tiles(data.photographs(data.CALIBRATION, CALIBRATION_BOARDS))
    options = Options(batches=(1, 20), seconds=2.0)
    return quantize(
        str(original),
        RECIPE,
        {"image": calibration["image"]},
        evaluation=data.tiles(boards),
        output=output,
        settings=Settings(work=folder / "stages", threads=threads, options=options, reporter=shown),
    )


def _measured(
    versions: dict[str, Path], boards: Sequence[Board], scratch: Path, given: argparse.Namespace
) -> dict[str, Line]:
    behind = {} if given.no_serve else served(versions, boards, scratch / "served")
    return {
        name: Line(path.stat().st_size, inspected(path, boards, given.threads), behind.get(name))
        for name, path in versions.items()
    }


def _verdict(lines: dict[str, Line], console: Console) -> int:
    """1 where whole boards are judged worse than the gate's tiles were."""
    before, after = (lines[name].found.mean_average_precision for name in ("FP32", "INT8"))
    if after >= before - MOST_LOST:
        return 0
    console.print(f"error: mAP@50 falls from {before:.4f} to {after:.4f}", style="red")
    return 1


if __name__ == "__main__":
    sys.exit(main())
