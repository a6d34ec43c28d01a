"""Metrics by name.

| name | compares with | better |
|---|---|---|
| `top-1`, `top-5`, any `top-K` | labels: class numbers | higher |
| `character-error-rate` | labels: texts (CTC, the model's own characters) | lower |
| `character-error-rate:file.py:decode` | `decode(outputs)` gives each row's text | lower |
| `mse` | labels, where there are any, or the original's output | lower |
| `agreement` | the original's answer | higher |
| `cosine` | the original's output | higher |
| `file.py:function` | `function(outputs, labels)` gives a number for each row | higher |

`outputs` is a dict of arrays, rows along the first axis. A function with an attribute `better` of
`"lower"` says so. `NAME@OUTPUT` takes that output; else it is the first that looks like scores.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ds_engines.base import Array, Tensors
from ds_engines.spec import ModelSpec
from ds_quantize.errors import DataError, RecipeError
from ds_quantize.evaluate.intervals import Scores
from ds_quantize.evaluate.outputs import answers, cosines, flat, main_output, squeezed
from ds_quantize.evaluate.results import Better
from ds_quantize.evaluate.text import Decode, edits
from ds_quantize.python_file import function, is_reference

NAMES = "top-1, top-K, character-error-rate, mse, agreement, cosine or file.py:function"
TOP = re.compile(r"top-([1-9]\d*)")
ERROR_RATE = "character-error-rate"

Score = Callable[[Tensors, Any], Scores]


@dataclass(frozen=True)
class Metric:
    """`score(outputs, reference)` scores rows; the reference is the labels, or the original's
    outputs. `decode` makes texts of outputs, where the metric has it.
    """

    name: str
    score: Score
    better: Better = "higher"
    against: Literal["labels", "original"] = "labels"
    perfect: float = 1.0
    decode: Decode | None = None


def chosen(labels: Array | None) -> str:
    """The metric that suits such labels."""
    if labels is None:
        return "cosine"
    if labels.dtype == np.object_:
        return ERROR_RATE
    return "top-1" if labels.dtype.kind in "iub" and labels.ndim == 1 else "mse"


def resolve(name: str, spec: ModelSpec, labelled: bool, characters: Callable[[], Decode]) -> Metric:
    """The metric of that name. `characters` makes the decoder of the model's own characters.

    Raises RecipeError for a name that there is not, DataError where labels are missing.
    """
    if is_reference(name) and not name.startswith(f"{ERROR_RATE}:"):
        return _of_file(name, labelled)
    bare, _, output = name.partition("@")
    _require_output(name, output, spec)
    metric = _named(bare, output, labelled, characters)
    if metric is None:
        raise RecipeError(f"no metric is called {name!r}; it may be {NAMES}")
    if metric.against == "labels" and not labelled:
        raise DataError(f"metric {name} needs labels, and the evaluation data have none")
    return metric


def _named(
    name: str, output: str, labelled: bool, characters: Callable[[], Decode]
) -> Metric | None:
    if top := TOP.fullmatch(name):
        return Metric(name, _top(int(top[1]), output, name))
    if name == "agreement":
        return Metric(name, _agreement(output), against="original")
    if name == "cosine":
        return Metric(name, _cosine(output), against="original")
    if name == "mse":
        return Metric(
            name,
            _mse(output),
            better="lower",
            against="labels" if labelled else "original",
            perfect=0.0,
        )
    return _error_rate(name, output, characters)


def _error_rate(name: str, output: str, characters: Callable[[], Decode]) -> Metric | None:
    bare, _, reference = name.partition(":")
    if bare != ERROR_RATE:
        return None
    decode = _of_user(reference) if reference else characters()

    def texts(outputs: Tensors) -> list[str]:
        return decode({output: outputs[output]} if output else outputs)

    def score(outputs: Tensors, labels: Array) -> Scores:
        pairs = list(zip(texts(outputs), (str(label) for label in labels), strict=True))
        return Scores(
            np.array([edits(read, label) for read, label in pairs], np.float64),
            np.array([len(label) for _, label in pairs], np.float64),
        )

    return Metric(ERROR_RATE, score, better="lower", perfect=0.0, decode=texts)


def _of_user(reference: str) -> Decode:
    given = function(reference, RecipeError)

    def decode(outputs: Tensors) -> list[str]:
        found = [str(text) for text in _called(given, reference, outputs)]
        rows = len(next(iter(outputs.values())))
        if len(found) != rows:
            raise DataError(f"{reference} gives {len(found)} texts for {rows} rows")
        return found

    return decode


def _of_file(reference: str, labelled: bool) -> Metric:
    given = function(reference, RecipeError)
    better: Better = getattr(given, "better", "higher")
    if better not in ("higher", "lower"):
        raise RecipeError(f"{reference}.better is {better!r}; it must be 'higher' or 'lower'")

    def score(outputs: Tensors, labels: Array | None) -> Scores:
        rows = len(next(iter(outputs.values())))
        found = np.asarray(_called(given, reference, outputs, labels), np.float64)
        if found.shape != (rows,):
            raise DataError(
                f"{reference} gives shape {list(found.shape)} for {rows} rows; it must give one "
                "number for each row"
            )
        return _equal(found)

    perfect = 1.0 if better == "higher" else 0.0
    return Metric(reference, score, better, "labels", perfect=perfect)


def _called(given: Callable[..., Any], reference: str, *arguments: Any) -> Any:
    try:
        return given(*arguments)
    except Exception as error:
        raise DataError(f"{reference} fails: {type(error).__name__}: {error}") from error


def _require_output(name: str, output: str, spec: ModelSpec) -> None:
    there = [tensor.name for tensor in spec.outputs]
    if output and output not in there:
        raise RecipeError(
            f"metric {name}: {spec.name} has no output {output!r}; it has {', '.join(there)}"
        )


def _equal(total: Array) -> Scores:
    """Rows that count alike."""
    return Scores(total.astype(np.float64), np.ones(len(total)))


def _top(k: int, output: str, name: str) -> Score:
    def score(outputs: Tensors, labels: Array) -> Scores:
        found = squeezed(main_output(outputs, output))
        if labels.dtype.kind not in "iub" or labels.ndim != 1:
            raise DataError(f"metric {name} needs labels that are one class number for each row")
        if found.dtype.kind != "f":
            return _equal(found.reshape(len(found), -1)[:, 0] == labels)
        if found.ndim != 2:
            raise DataError(
                f"metric {name} needs an output of [rows, classes]; a row of it has shape "
                f"{list(found.shape[1:])}"
            )
        _require_classes(labels, found.shape[1], name)
        return _equal(_ahead(found, labels[:, None].astype(np.int64)) < k)

    return score


def _ahead(scores: Array, labels: Array) -> Array:
    """How many classes come before the label; of equal scores the first, as argmax has it."""
    own = np.take_along_axis(scores, labels, 1)
    earlier = np.arange(scores.shape[1])[None] < labels
    ahead: Array = ((scores > own) | ((scores == own) & earlier)).sum(1)
    return ahead


def _require_classes(labels: Array, classes: int, name: str) -> None:
    if labels.min() < 0 or labels.max() >= classes:
        wrong = int(labels.min() if labels.min() < 0 else labels.max())
        raise DataError(f"metric {name}: label {wrong} is not one of the model's {classes} classes")


def _agreement(output: str) -> Score:
    def score(outputs: Tensors, original: Tensors) -> Scores:
        found = agreement(main_output(outputs, output), main_output(original, output))
        if found is None:
            raise DataError("metric agreement needs an output of scores or of classes")
        return found

    return score


def agreement(ours: Array, theirs: Array) -> Scores | None:
    """The share of positions where both say the same; None where the output says nothing."""
    first, second = answers(ours), answers(theirs)
    if first is None or second is None:
        return None
    if first.shape != second.shape:
        return _equal(np.zeros(len(first)))
    return _equal((first == second).reshape(len(first), -1).mean(1))


def _cosine(output: str) -> Score:
    def score(outputs: Tensors, original: Tensors) -> Scores:
        return _equal(cosines(main_output(outputs, output), main_output(original, output)))

    return score


def _mse(output: str) -> Score:
    def score(outputs: Tensors, reference: Any) -> Scores:
        found = main_output(outputs, output)
        wanted = main_output(reference, output) if isinstance(reference, dict) else reference
        if found.size != wanted.size or wanted.dtype == np.object_:
            raise DataError(
                f"metric mse: a row of the output has shape {list(found.shape[1:])}, and a label "
                f"{list(wanted.shape[1:])}"
            )
        return _equal(((flat(found) - flat(wanted)) ** 2).mean(1))

    return score
