"""PyTorch modules in the folders of stages.

They are pickled whole, with the code of classes that no later process could import by name: those
of the user's file, of a running script, and those that libraries make while they run.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import cloudpickle
import torch

from ds_quantize.errors import MethodError
from ds_quantize.forms import TorchModel
from ds_quantize.python_file import PREFIX

FILE = "module.pt"


def save(model: TorchModel, folder: Path) -> None:
    """Write the module with its example, names and axes. Raises MethodError."""
    content = {
        "module": model.module,
        "example": model.example,
        "outputs": model.outputs,
        "axes": model.axes,
    }
    by_value = [module for name, module in sys.modules.items() if name.startswith(PREFIX)]
    for module in by_value:
        cloudpickle.register_pickle_by_value(module)
    try:
        torch.save(content, folder / FILE, pickle_module=cloudpickle)
    except Exception as error:
        name = type(model.module).__name__
        raise MethodError(f"the module {name} cannot be kept in a file: {error}") from error
    finally:
        _unregister(by_value)


def load(folder: Path) -> TorchModel:
    """What `save` has written; only ever called on the pipeline's own work folder."""
    content = torch.load(folder / FILE, map_location="cpu", weights_only=False)
    return TorchModel(**content)


def _unregister(modules: list[ModuleType]) -> None:
    for module in modules:
        cloudpickle.unregister_pickle_by_value(module)
