"""PyTorch's libraries warn and print a lot that is of no use to the user."""

from __future__ import annotations

from contextlib import AbstractContextManager

from ds_quantize.quiet import quieted

NOISY = ("torch", "torchao", "onnxscript", "onnx_ir", "modelopt")


def quiet() -> AbstractContextManager[None]:
    """Without the libraries' warnings, log lines and what they print."""
    return quieted(NOISY, prints=True)
