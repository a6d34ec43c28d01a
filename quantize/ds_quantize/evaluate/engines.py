"""The models as the server would run them."""

from __future__ import annotations

import os

from ds_engines.base import BatchEngine, EngineOptions, load
from ds_engines.spec import ModelSpec
from ds_quantize import onnx_files
from ds_quantize.errors import SourceError
from ds_quantize.forms import Model, OnnxModel, PlanModel

ENGINES = {"onnx": "onnxruntime", "plan": "tensorrt"}


def spec(model: Model) -> ModelSpec:
    """What its engine is asked to load."""
    if not isinstance(model, OnnxModel | PlanModel):
        raise SourceError(f"a model of form {model.form!r} runs on no engine before it is exported")
    return ModelSpec(name=model.path.name, engine=ENGINES[model.form], artifact=model.path)


def opened(model: Model, threads: int) -> BatchEngine:
    """The model in its engine; its `spec` is complete. Raises LoadError."""
    device = "cpu" if model.form == "onnx" else "auto"
    return load(spec(model), EngineOptions(threads=threads, device=device))


def usable(threads: int) -> int:
    """So many, or all that the machine grants where it is 0."""
    return threads or len(os.sched_getaffinity(0))


def size(model: Model) -> int:
    """Bytes on disk, with the files that hold an ONNX file's tensors."""
    if not isinstance(model, OnnxModel | PlanModel):
        raise SourceError(f"a model of form {model.form!r} has no file of its own")
    files = onnx_files.files(model.path) if isinstance(model, OnnxModel) else [model.path]
    return sum(path.stat().st_size for path in files)
