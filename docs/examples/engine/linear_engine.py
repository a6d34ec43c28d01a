"""Linear models in .npz files: y = x @ weights + bias, with weights [n, m] and bias [m]."""

from __future__ import annotations

import zipfile

import msgspec
import numpy as np

from ds_engines.base import EngineOptions, Tensors
from ds_engines.errors import EngineFailure, LoadError, Unsupported
from ds_engines.spec import ModelSpec, TensorSpec


class LinearEngine:
    """What the server asks of an engine: `spec`, `run` and `close`."""

    def __init__(self, spec: ModelSpec, options: EngineOptions) -> None:
        if options.device not in ("cpu", "auto"):
            raise Unsupported(f"--device {options.device}: linear models run on cpu")
        try:
            with np.load(spec.artifact, allow_pickle=False) as file:
                self._weights, self._bias = file["weights"], file["bias"]
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise LoadError(f"{spec.artifact} is not a linear model: {error}") from error
        inputs, outputs = self._weights.shape
        # Requests are joined along the first axis, since both tensors name it as their batch axis.
        self.spec = msgspec.structs.replace(
            spec,
            platform="linear",
            inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, inputs), batch_axis=0),),
            outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, outputs), batch_axis=0),),
        )

    def run(self, batch: Tensors, outputs: tuple[str, ...] = ()) -> Tensors:
        """One batch; called from as many threads as the model has instances."""
        answer = batch["x"] @ self._weights + self._bias
        if not np.isfinite(answer).all():
            raise EngineFailure("y is not finite")
        return {"y": answer.astype(np.float32)}

    def close(self) -> None:
        """Free what the model holds."""
        del self._weights, self._bias
