"""How sure a classifier is of each row, by one of its outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ds_engines.spec import ModelSpec

Array = NDArray[Any]

NUMBERS = frozenset({"FP16", "FP32", "FP64"})


def judged_output(spec: ModelSpec, named: str) -> str:
    """The output that tells how sure the model is. Raises ValueError with what is wrong."""
    outputs = {tensor.name: tensor.datatype for tensor in spec.outputs}
    if named:
        if outputs.get(named) in NUMBERS:
            return named
        has = outputs.get(named, "no such output")
        raise ValueError(
            f"output={named} must be FP16, FP32 or FP64, and is {has}; the outputs are: "
            f"{', '.join(outputs)}"
        )
    found = [name for name, datatype in outputs.items() if datatype in NUMBERS]
    if len(found) == 1:
        return found[0]
    raise ValueError(
        f"say by output=NAME which of its outputs tells how sure it is; with numbers there are: "
        f"{', '.join(found) or 'none'}"
    )


def confidence(scores: Array, kind: str = "") -> Array:
    """Of each row, 0 to 1: [rows, classes] of probabilities or logits give the highest probability,
    [rows] or [rows, 1] are the confidence itself. More axes between are as many verdicts, of which
    the least sure counts. `kind`: probabilities or logits; "" for what they look like.
    """
    values = np.asarray(scores, np.float64)
    if not values.size:
        return np.zeros(len(values))
    if values.ndim < 2 or values.shape[-1] == 1:
        sure = values.reshape(len(values), -1) if values.ndim else values.reshape(1, 1)
    else:
        sure = _probabilities(values, kind).max(-1).reshape(len(values), -1)
    least: Array = sure.min(1)
    return least


def _probabilities(scores: Array, kind: str) -> Array:
    if not kind and (scores >= 0).all() and np.allclose(scores.sum(-1), 1, atol=1e-2):
        kind = "probabilities"
    if kind == "probabilities":
        return scores
    with np.errstate(invalid="ignore", over="ignore"):
        powers = np.exp(scores - scores.max(-1, keepdims=True))
        softened: Array = powers / powers.sum(-1, keepdims=True)
        return softened
