"""A candidate against its baseline: quality, speed, size and memory, on the built engines."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Protocol

import msgspec

from ds_quantize import libraries
from ds_quantize.errors import SourceError
from ds_quantize.evaluate.results import (
    Estimate,
    Evaluation,
    LayerError,
    OutputError,
    Quality,
    Side,
    Timing,
)

if TYPE_CHECKING:
    from ds_quantize.context import Context
    from ds_quantize.data import Data
    from ds_quantize.forms import Model

__all__ = [
    "Estimate",
    "Evaluation",
    "LayerError",
    "Options",
    "OutputError",
    "Quality",
    "Side",
    "Timing",
    "compare",
]


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much is measured. `seconds` is the time for one engine at one batch size, spread over
    `repeats` that take turns; `layer_rows` are the rows that the layers are compared on, 0: none.
    """

    batches: tuple[int, ...] = (1, 8, 32)
    seconds: float = 1.0
    repeats: int = 5
    memory: bool = True
    layer_rows: int = 8


class Comparer(Protocol):
    """`compare` for one form of model."""

    def __call__(
        self,
        baseline: Model,
        candidate: Model,
        data: Data,
        metric: str,
        context: Context,
        options: Options,
        /,
    ) -> Evaluation: ...


COMPARERS = {
    "onnx": "ds_quantize.evaluate.tensors:compare",
    "plan": "ds_quantize.evaluate.tensors:compare",
    "huggingface": "ds_quantize.evaluate.language:compare",
    "openvino": "ds_quantize.evaluate.language:compare",
}
"""Form of the candidate to `module:function`."""


def compare(
    baseline: Model,
    candidate: Model,
    data: Data,
    metric: str,
    context: Context,
    options: Options | None = None,
) -> Evaluation:
    """Run both models on all of `data` as the server would run them.

    `metric` is a name of `ds_quantize.evaluate.metrics` or `file.py:function`; "" chooses one that
    suits the data. Raises DataError for data that do not suit the model or the metric, LoadError
    for a model that its engine cannot load, EngineFailure where running it fails.
    """
    if candidate.form not in COMPARERS:
        raise SourceError(
            f"a model of form {candidate.form!r} cannot be evaluated; {', '.join(COMPARERS)} can"
        )
    module, _, function = COMPARERS[candidate.form].partition(":")
    try:
        comparer: Comparer = getattr(import_module(module), function)
    except ImportError as error:
        extra = "quantize" if candidate.form in ("onnx", "plan") else "quantize-llm"
        raise libraries.missing(error, extra, "the evaluation") from error
    return comparer(baseline, candidate, data, metric, context, options or Options())
