"""Running modules, and copying them so that the one given is left as it is."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

import numpy as np
import torch
from torch import nn

from ds_engines.base import Array, Tensors
from ds_quantize.errors import MethodError
from ds_quantize.forms import Model, TorchModel
from ds_quantize.torch_methods.quiet import quiet

Inputs = tuple[torch.Tensor, ...]


def torch_model(model: Model, method: str) -> TorchModel:
    """The model, which must be a module; MethodError otherwise."""
    if not isinstance(model, TorchModel):
        raise MethodError(
            f"{method} works on a PyTorch module, and this is {model.form}; put it before the "
            "steps that make other forms, and give the model as file.py:factory"
        )
    return model


def copied(model: TorchModel) -> TorchModel:
    """With a module of its own, in evaluation mode."""
    with quiet():  # copying an exported graph warns of what PyTorch itself does
        module = copy.deepcopy(model.module)
    set_training(module, False)
    return dataclasses.replace(model, module=module)


def set_training(module: nn.Module, training: bool) -> None:
    """Switch dropout and the like on or off; exported modules stay as they were exported."""
    with contextlib.suppress(NotImplementedError):
        module.train(training)


def example(model: TorchModel) -> Inputs:
    """The example inputs, in the order of `forward`."""
    return tuple(tensor(array) for array in model.example.values())


def tensor(array: Array) -> torch.Tensor:
    """A tensor of its own with the array's contents."""
    return torch.from_numpy(np.array(array, order="C"))


def run(module: nn.Module, inputs: Inputs) -> tuple[torch.Tensor, ...]:
    """What `forward` gives, as a tuple: a tensor, several, a dict's or a dataclass's values."""
    found = module(*inputs)
    if isinstance(found, torch.Tensor):
        return (found,)
    values = found.values() if isinstance(found, dict) else found
    tensors = tuple(value for value in values if isinstance(value, torch.Tensor))
    if not tensors:
        raise MethodError(f"the module gives no tensors but {type(found).__name__}")
    return tensors


def outputs(model: TorchModel, inputs: Tensors) -> Tensors:
    """The module's outputs by name."""
    with torch.no_grad():
        found = run(model.module, tuple(tensor(inputs[name]) for name in model.example))
    return {name: value.numpy() for name, value in zip(model.outputs, found, strict=True)}


def excluded(name: str, patterns: Sequence[str]) -> bool:
    """Whether the layer's name fits one of the patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def require_layers(module: nn.Module, patterns: Sequence[str]) -> None:
    """MethodError for a pattern that fits no layer, most likely a slip."""
    names = [name for name, _ in module.named_modules() if name]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise MethodError(f"exclude: no layer is called {pattern!r}; there are: {_some(names)}")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")


@contextlib.contextmanager
def settled(seed: int, threads: int) -> Iterator[None]:
    """Random numbers that are the same each time, and no more threads than granted."""
    before = torch.get_num_threads()
    if threads:
        torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(before)
