"""`ds-quantize export MODEL -o PATH`: a PyTorch module frozen to files, compared with itself."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.table import Table

from ds_quantize import data, exporting, sources, text, torch_export
from ds_quantize.errors import SourceError
from ds_quantize.exporting import Side
from ds_quantize.forms import TorchModel
from ds_quantize.progress import reporter


def run(arguments: argparse.Namespace) -> int:
    """Write the files, and print eager against exported."""
    console = text.console()
    shown = reporter(console)
    calibration = data.load(arguments.calibration) if arguments.calibration else None
    with shown.stage("read"):
        model = sources.read(arguments.model, calibration).model
    if not isinstance(model, TorchModel):
        raise SourceError(f"{arguments.model} is {model.form} already; give FILE.py:FACTORY")
    for path in arguments.output:
        with shown.stage(f"export to {path}"):
            write(model, path, arguments.format)
    with shown.stage("compare"):
        sides = exporting.compare(model, arguments.output, arguments.threads, arguments.seconds)
    console.print(table(sides))
    return 0


def write(model: TorchModel, path: Path, format: torch_export.Format | None) -> None:
    """ONNX, or `.pt2` where that is the format or the path's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if (format or ("pt2" if path.suffix == ".pt2" else "onnx")) == "pt2":
        torch_export.to_pt2(model, path)
    else:
        torch_export.to_onnx(model, path)


def table(sides: Sequence[Side]) -> Table:
    """A column for each way to run the model."""
    made = Table()
    made.add_column("", no_wrap=True)
    for side in sides:
        made.add_column(side.name, justify="right", no_wrap=True)
    for row in _rows(sides):
        made.add_row(*row)
    return made


def _rows(sides: Sequence[Side]) -> Iterator[list[str]]:
    for output, (_, largest) in sides[-1].errors.items():
        errors = [f"{side.errors[output][0]:.2g}" for side in sides[1:]]
        yield [f"largest error of {output}", f"(values to {largest:.3g})", *errors]
    for at, timing in enumerate(sides[0].timings):
        latencies = [f"{side.timings[at].latency_ms:.3f} ms" for side in sides]
        yield [f"median latency, batch {timing.batch}", *latencies]
    yield ["size", *(text.size(side.size_bytes) for side in sides)]
    if all(side.memory_bytes is not None for side in sides):
        yield ["memory", *(text.size(side.memory_bytes or 0) for side in sides)]
