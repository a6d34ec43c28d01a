"""`ds-quantize compare A B`: two models on the same data, in the server's engines."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from ds_quantize import data, evaluate, gate, report, sources, text
from ds_quantize.context import Context
from ds_quantize.errors import SourceError
from ds_quantize.evaluate import Evaluation, Options
from ds_quantize.forms import Model, TorchModel
from ds_quantize.limits import Gate
from ds_quantize.progress import Reporter, reporter


def compare(arguments: argparse.Namespace) -> int:
    """Print how B differs from A."""
    console = text.console()
    first, second = _model(arguments.a), _model(arguments.b)
    shown = reporter(console)
    with shown.stage("compare"):
        found = _compared(first, second, arguments, shown)
    console.print(text.comparison(found))
    for note in (*found.notes, *found.faults):
        console.print(f"note: {note}", markup=False)
    if arguments.output is not None:
        verdict = gate.judge(Gate(), found)
        path = report.write(arguments.output, found, verdict, {"name": "compare"}, {})
        console.print(f"The report is {path}", markup=False)
    return 0


def _compared(
    first: Model, second: Model, arguments: argparse.Namespace, shown: Reporter
) -> Evaluation:
    rows = data.load(arguments.evaluation)
    with tempfile.TemporaryDirectory(prefix="ds-quantize-") as folder:
        context = Context(Path(folder), shown, first, evaluation=rows, threads=arguments.threads)
        options = Options(seconds=arguments.seconds)
        return evaluate.compare(first, second, rows, arguments.metric, context, options)


def _model(said: str) -> Model:
    model = sources.read(said).model
    if isinstance(model, TorchModel):
        raise SourceError(f"{said} is a PyTorch module; export it, as engines run files")
    return model
