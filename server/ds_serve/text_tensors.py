"""What tensors a text model has, seen through KServe."""

from __future__ import annotations

from pathlib import Path

from ds_engines import encoder_folder
from ds_engines.encoder_folder import EncoderInfo
from ds_engines.errors import ServeError
from ds_engines.spec import TensorSpec

INPUTS = (
    TensorSpec("text_input", "BYTES", (1,)),
    TensorSpec("stream", "BOOL", (1,), optional=True),
    TensorSpec("sampling_parameters", "BYTES", (1,), optional=True),
    TensorSpec("exclude_input_in_output", "BOOL", (1,), optional=True),
)
OUTPUTS = (TensorSpec("text_output", "BYTES", (1,)),)
"""Of a model that writes: those of Triton's vLLM backend."""

TEXT, EMBEDDING, PROBABILITIES, LABEL = "text", "embedding", "probabilities", "label"
"""Of an encoder, for n texts: what it reads, and the vectors or the classes that it gives."""

Tensors = tuple[TensorSpec, ...]


def of_encoder(folder: Path) -> tuple[Tensors, Tensors]:
    """Inputs and outputs of the encoder in that folder; of one that cannot be read, vectors: its
    worker says what is wrong.
    """
    inputs = (TensorSpec(TEXT, "BYTES", (-1,)),)
    try:
        info = encoder_folder.read(folder)
        if not info.classifies:
            return inputs, (TensorSpec(EMBEDDING, "FP32", (-1, _width(info))),)
    except ServeError:
        return inputs, (TensorSpec(EMBEDDING, "FP32", (-1, -1)),)
    shape = (-1, len(info.labels))
    probabilities = TensorSpec(PROBABILITIES, "FP32", shape, labels=info.labels)
    return inputs, (probabilities, TensorSpec(LABEL, "BYTES", (-1,)))


def _width(info: EncoderInfo) -> int:
    """Numbers of a vector; -1 where the folder does not say."""
    if info.dense:
        found = encoder_folder.read_json(info.dense[-1].folder / "config.json").get("out_features")
    else:
        found = info.config.get("hidden_size") or info.config.get("dim")
        found = found * len(info.pooling) if isinstance(found, int) else None
    return found if isinstance(found, int) and found > 0 else -1
