"""A text model seen through KServe has the tensors of Triton's vLLM backend."""

from __future__ import annotations

from ds_engines.spec import TensorSpec

INPUTS = (
    TensorSpec("text_input", "BYTES", (1,)),
    TensorSpec("stream", "BOOL", (1,), optional=True),
    TensorSpec("sampling_parameters", "BYTES", (1,), optional=True),
    TensorSpec("exclude_input_in_output", "BOOL", (1,), optional=True),
)
OUTPUTS = (TensorSpec("text_output", "BYTES", (1,)),)
