"""`ds-quantize cascade SMALL LARGE`: both as one model, judged against the large one."""

from __future__ import annotations

import argparse
from itertools import islice

from rich.console import Console

from ds_quantize import artifact, data, pipeline, promotion, text
from ds_quantize.commands.run import end, job_of, limited, limits_of, stages_of
from ds_quantize.data import Data
from ds_quantize.errors import DataError, RecipeError
from ds_quantize.limits import Gate
from ds_quantize.loaders.rows import RowData
from ds_quantize.methods.cascade import Cascade
from ds_quantize.pipeline import Job
from ds_quantize.progress import reporter
from ds_quantize.recipe import Recipe

GATE = Gate(max_accuracy_drop=0.005)


def run(arguments: argparse.Namespace) -> int:
    """0 where the result was promoted and passed."""
    console = text.console()
    artifact.check(arguments.output)
    step = Cascade(small=arguments.small, threshold=_threshold(arguments.threshold))
    plan = Recipe(
        "cascade", f"{arguments.small} before {arguments.large}", steps=(step,), gate=GATE
    )
    plan = limited(plan, limits_of(arguments.limit))
    opened = pipeline.opened(_job(arguments), stages_of(arguments, reporter(console)))
    candidate = opened.compress(plan)
    _tell(candidate.steps[0], console)
    return end(promotion.proven(opened, candidate), opened, arguments, console)


def _tell(measured: dict[str, float], console: Console) -> None:
    console.print(
        f"With a threshold of {measured['threshold']:.4f} the small model answers "
        f"{measured['answered_by_small']:.1%} of the rows that it was chosen on: accuracy "
        f"{measured['accuracy']:.4f}; the large model alone {measured['accuracy_large']:.4f}, the "
        f"small one {measured['accuracy_small']:.4f}.",
        markup=False,
    )


def _threshold(said: str) -> float | None:
    if said == "auto":
        return None
    try:
        value = float(said)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise RecipeError(f"--threshold {said}: give auto or a probability above 0, up to 1")
    return value


def _job(arguments: argparse.Namespace) -> Job:
    """A threshold that was chosen on rows is not proven on the same."""
    given = data.load(arguments.evaluation)
    if arguments.calibration is not None:
        chosen_on, proven_on = data.load(arguments.calibration), given
    else:
        chosen_on, proven_on = half(given, 1), half(given, 0)
    return job_of(arguments, arguments.large, chosen_on, proven_on)


def half(whole: Data, part: int) -> RowData:
    """Every other row of some data: the first, third, ... for `part` 0, the others for 1."""
    if not isinstance(whole, RowData):
        raise DataError(f"{whole.source} cannot be parted; give --calibration too")
    source = f"{whole.source} ({('odd', 'even')[part]} rows)"
    rows = whole.each
    return RowData(source, lambda: islice(rows(), part, None, 2), kept=True)
