"""The offline pipeline: recipe -> calibrate -> quantize -> evaluate -> build -> manifest."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ds_quantize.api import Quantized, Settings, quantize, quantize_dynamic

__all__ = ["Quantized", "Settings", "quantize", "quantize_dynamic"]


def __getattr__(name: str) -> Any:
    """What is offered is imported when it is first asked for: a look at recipes needs no ONNX."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("ds_quantize.api"), name)
