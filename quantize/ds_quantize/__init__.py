"""The offline pipeline: recipe -> calibrate -> quantize -> evaluate -> build -> manifest."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ds_quantize.api import Quantized, Settings, quantize, quantize_dynamic
    from ds_quantize.torch_export import export

__all__ = ["Quantized", "Settings", "export", "quantize", "quantize_dynamic"]


def __getattr__(name: str) -> Any:
    """What is offered is imported when it is first asked for: a look at recipes needs no ONNX."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "torch_export" if name == "export" else "api"
    return getattr(import_module(f"ds_quantize.{module}"), name)
