"""ONNX Runtime called directly, for answers to compare with and for what they cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

TOLERANCE = 1e-4
"""Of a probability. Batches of another size are added up in another order, by some 1e-6."""

Arrays = dict[str, npt.NDArray[np.generic]]


class Reference:
    """A model, or the file that holds it, on so many threads."""

    def __init__(self, model: onnx.ModelProto | Path, threads: int = 1) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # As the server runs it: a waiting thread that spins takes the core from the others.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        source = str(model) if isinstance(model, Path) else model.SerializeToString()
        providers = ["CPUExecutionProvider"]
        self._session: Any = onnxruntime.InferenceSession(source, options, providers=providers)
        self._names = [tensor.name for tensor in self._session.get_outputs()]

    def run(self, inputs: Arrays) -> Arrays:
        return dict(zip(self._names, self._session.run(None, inputs), strict=True))


def difference(wanted: Arrays, given: Arrays) -> str | None:
    """What is wrong with an answer of probabilities, in a few words, or None."""
    for name, right in wanted.items():
        if name not in given:
            return f"no {name!r} among the outputs {sorted(given)}"
        found = np.asarray(given[name])
        if found.shape != right.shape:
            return f"{name} is of the shape {list(found.shape)} instead of {list(right.shape)}"
        off = np.abs(found.astype(np.float64) - right.astype(np.float64))
        if not np.all(off <= TOLERANCE):
            return f"{name} is off by {off.max():.2g}, which is more than {TOLERANCE:g}"
    return None
