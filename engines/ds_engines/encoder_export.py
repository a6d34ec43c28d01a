"""A Hugging Face folder with an encoder whose network is not known here, as one with its graph.

PyTorch and Transformers, which know it, make the graph once.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from ds_engines.encoder_folder import read
from ds_engines.errors import ConfigError

Progress = Callable[[str, float], None]
"""Told the step that begins, and the share that is done, from 0 to 1."""

MODEL = "openvino/openvino_model.xml"
EXTRA = "convert"

_TRACING = "ds_engines.encoder_tracing"
_LEFT_OUT = shutil.ignore_patterns(
    ".*", "pytorch_model*", "tf_model*", "flax_model*", "rust_model*", "onnx", "openvino",
    "model*.safetensors*",
)  # fmt: skip


def export_folder(folder: Path, target: Path, progress: Progress) -> None:
    """Convert the encoder in `folder` into `target`, with all that stands beside its weights.

    No code out of the folder is run. The graph's answers are compared with PyTorch's before it is
    written. Raises LoadError for a folder that cannot be converted, and ConfigError where a
    library is missing.
    """
    progress("reading", 0.0)
    info = read(folder)
    tracing = _imported()
    shutil.copytree(folder, target, ignore=_LEFT_OUT, dirs_exist_ok=True)
    for layer in info.dense:
        weights = layer.folder / "model.safetensors"
        shutil.copy(weights, target / layer.folder.relative_to(folder))
    (target / MODEL).parent.mkdir(exist_ok=True)
    tracing.convert(folder, target / MODEL, info.architecture, progress)
    progress("done", 1.0)


def _imported() -> Any:
    try:
        return import_module(_TRACING)
    except ImportError as error:
        raise ConfigError(
            f"converting this encoder needs {error.name or str(error)!r}: "
            f'pip install "ds-serve[{EXTRA}]"'
        ) from error
