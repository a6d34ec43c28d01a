"""The forms that a model takes on its way through the pipeline."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    import torch

    from ds_engines.base import Tensors

Form = Literal["torch", "onnx", "huggingface", "openvino", "plan"]


@dataclass(frozen=True)
class TorchModel:
    """A PyTorch module in memory, on the CPU.

    `example`: one batch of its inputs in the order of `forward`'s arguments, name to array, with
    two rows or more along each batch axis. `axes` names the dynamic axes of inputs, those of one
    length alike, with the greatest that is allowed: `{"ids": {0: "batch", 1: "tokens<=512"}}`.
    """

    module: torch.nn.Module
    example: Tensors
    outputs: tuple[str, ...] = ("output",)
    axes: dict[str, dict[int, str]] = field(default_factory=dict)
    form: Form = "torch"


@dataclass(frozen=True)
class OnnxModel:
    """An ONNX file; tensors that it keeps in other files lie beside it."""

    path: Path
    form: Form = "onnx"


@dataclass(frozen=True)
class FolderModel:
    """A folder: a Hugging Face model (`huggingface`) or an OpenVINO one for text (`openvino`)."""

    path: Path
    form: Form = "huggingface"


@dataclass(frozen=True)
class PlanModel:
    """A TensorRT plan; `library` is what built it (`tensorrt`, `tensorrt_rtx`) with its version."""

    path: Path
    library: str
    form: Form = "plan"


Model: TypeAlias = TorchModel | OnnxModel | FolderModel | PlanModel

Measured: TypeAlias = "dict[str, Any]"
"""Numbers and words that a stage reports, as JSON can say them; the manifest keeps them."""
