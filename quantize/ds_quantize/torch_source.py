"""PyTorch modules as users have them: a factory in a Python file, or an exported program."""

from __future__ import annotations

import hashlib
import inspect
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ds_engines.base import Array
from ds_quantize.data import Data
from ds_quantize.errors import SourceError
from ds_quantize.forms import TorchModel
from ds_quantize.python_file import function
from ds_quantize.torch_export import described
from ds_quantize.torch_methods.quiet import quiet

EXAMPLE_ROWS = 2

Read = tuple[TorchModel, str]
"""The model, and a SHA-256 over its code, weights and example."""


def from_factory(said: str, calibration: Data | None, seed: int) -> Read:
    """`file.py:factory`: a module, or a pair of it and example inputs, is what it returns."""
    factory = function(said, SourceError)
    torch.manual_seed(seed)
    try:
        made = factory()
    except Exception as error:
        raise SourceError(f"{said} fails: {type(error).__name__}: {error}") from error
    code = Path(said.rpartition(":")[0]).expanduser().read_bytes()
    return from_module(made, said, calibration, code)


def from_module(made: Any, said: str, calibration: Data | None = None, code: bytes = b"") -> Read:
    """A module, a pair of it and example inputs, or these and dynamic axes. Raises SourceError."""
    parts = made if isinstance(made, tuple) and len(made) in (2, 3) else (made,)
    module, example, axes = (*parts, None, None)[:3]
    if not isinstance(module, torch.nn.Module):
        raise SourceError(
            f"{said} gives a {type(module).__name__}; it must give a torch.nn.Module, or a tuple "
            "of one, its example inputs and, where more than the batch is dynamic, their axes"
        )
    module.eval()
    if example is None:
        example = _from_data(said, calibration)
    model = described(module, _doubled(example), axes=axes)
    return model, _digest(model, code)


def from_program(said: str, calibration: Data | None, seed: int) -> Read:
    """A `.pt2` file, whose inputs and dynamic axes are those it was exported with."""
    path = Path(said).expanduser()
    try:
        with quiet():
            program = torch.export.load(path)
    except Exception as error:
        raise SourceError(f"{path} is not an exported program that can be read: {error}") from error
    if program.example_inputs is None:
        raise SourceError(f"{path} has no example inputs; export it anew or give FILE.py:FACTORY")
    arguments, named = program.example_inputs
    if named:
        raise SourceError(f"{path} takes inputs by name ({', '.join(named)}); export it without")
    with quiet():
        module = program.module()
    names = _user_inputs(program)
    example = dict(zip(names, arguments, strict=True))
    model = described(module, example, axes=_axes(program, names))
    with path.open("rb") as file:
        return model, hashlib.file_digest(file, "sha256").hexdigest()


def _user_inputs(program: torch.export.ExportedProgram) -> list[str]:
    return [str(name) for name in program.graph_signature.user_inputs]


def _axes(program: torch.export.ExportedProgram, names: list[str]) -> dict[str, dict[int, str]]:
    """The axes that the program leaves open, those of one symbol under one name."""
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    called: dict[str, str] = {}
    axes: dict[str, dict[int, str]] = {}
    for name in names:
        for axis, size in enumerate(nodes[name].meta["val"].shape):
            if not isinstance(size, int):
                symbol = str(size)
                called.setdefault(symbol, "batch" if axis == 0 and not called else f"axis_{symbol}")
                limit = _limit(program, size)
                axes.setdefault(name, {})[axis] = f"{called[symbol]}{limit}"
    return axes


def _limit(program: torch.export.ExportedProgram, size: torch.SymInt) -> str:
    """The greatest length of an axis, as `<=512`; nothing where it has none."""
    bounds = program.range_constraints.get(size.node.expr)
    return f"<={int(bounds.upper)}" if bounds is not None and bounds.upper.is_Integer else ""


def _from_data(said: str, calibration: Data | None) -> dict[str, Array]:
    if calibration is None:
        raise SourceError(
            f"{said} gives a module alone, and nothing says what its inputs look like: return "
            "(module, example inputs), or give --calibration"
        )
    return dict(next(iter(calibration.batches(EXAMPLE_ROWS))).inputs)


def _doubled(example: Any) -> Any:
    """Examples of one row with that row twice: the exporter takes a size of 1 for fixed."""
    if isinstance(example, dict):
        return {name: _doubled(value) for name, value in example.items()}
    if isinstance(example, tuple | list):
        return tuple(_doubled(value) for value in example)
    value = torch.as_tensor(example)
    return torch.cat([value, value]) if value.ndim and len(value) == 1 else value


def _digest(model: TorchModel, code: bytes) -> str:
    digest = hashlib.sha256(code + repr((model.module, model.axes)).encode())
    for kind in sorted({type(part) for part in model.module.modules()}, key=str):
        digest.update(_source_of(kind))
    for name, tensor in sorted(model.module.state_dict().items()):
        if isinstance(tensor, torch.Tensor):
            digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(_bytes(tensor))
    for name, array in model.example.items():
        digest.update(f"\n{name}\n".encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _source_of(kind: type) -> bytes:
    """The code of a class; nothing for PyTorch's own, and for what was made while running."""
    if kind.__module__.startswith("torch."):
        return b""
    try:
        return inspect.getsource(kind).encode()
    except (OSError, TypeError):
        return b""


def _bytes(tensor: torch.Tensor) -> bytes:
    plain = tensor.detach().cpu().contiguous()
    try:
        return plain.view(torch.uint8).numpy().tobytes() if plain.ndim else _saved(plain)
    except (RuntimeError, TypeError):
        return _saved(plain)


def _saved(tensor: torch.Tensor) -> bytes:
    buffer = io.BytesIO()
    torch.save(tensor, buffer)
    return buffer.getvalue()
