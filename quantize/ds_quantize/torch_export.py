"""PyTorch modules frozen to files: ONNX, with dynamic axes and fused operators, and `.pt2`."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch.export import Dim, ExportedProgram

from ds_engines.base import Tensors
from ds_quantize.errors import SourceError
from ds_quantize.forms import OnnxModel, TorchModel
from ds_quantize.torch_methods.modules import copied, run, tensor
from ds_quantize.torch_methods.quiet import quiet

Format = Literal["onnx", "pt2"]
Axes = dict[str, dict[int, str]]

EXTERNAL_BYTES = 1 << 30
"""From this size on weights are kept in a file beside the ONNX file, which may have 2 GiB."""


def export(
    module: torch.nn.Module,
    path: str | Path,
    example: Any,
    outputs: Sequence[str] = (),
    axes: Axes | None = None,
    format: Format | None = None,
) -> Path:
    """Freeze a module to a file: ONNX under whatever name, or `.pt2` where that is its ending.

    `example`: one batch of inputs, of two rows or more: a tensor or array, several in the order of
    `forward`, or a dict of them by name. `axes` are the dynamic ones, by input, each with a name
    and, after `<=`, its greatest length: `{"ids": {0: "batch", 1: "tokens<=512"}}`; the first of
    each input where none are given. Raises SourceError.
    """
    model = described(module, example, outputs, axes)
    path = Path(path)
    if (format or ("pt2" if path.suffix == ".pt2" else "onnx")) == "pt2":
        return to_pt2(model, path)
    return to_onnx(model, path).path


def described(
    module: torch.nn.Module,
    example: Any,
    outputs: Sequence[str] = (),
    axes: Axes | None = None,
) -> TorchModel:
    """The module as the pipeline wants it, with names for inputs and outputs, and their axes.

    Inputs are called as `forward` calls them; outputs are output, or output_0 and so on. Raises
    SourceError for names that are taken, and for axes that there are not.
    """
    inputs = _named(module, example)
    if axes is None:
        axes = {name: {0: "batch"} for name, array in inputs.items() if array.ndim}
    _require_axes(inputs, axes)
    model = copied(TorchModel(module=module, example=inputs, axes=axes))
    with torch.no_grad():
        count = len(run(model.module, tuple(map(tensor, inputs.values()))))
    names = tuple(outputs) or _output_names(count, inputs)
    if len(names) != count:
        raise SourceError(f"the module gives {count} outputs, and {len(names)} are named: {names}")
    _require_unique(names, inputs)
    return TorchModel(module=module, example=inputs, outputs=names, axes=axes)


def exported(model: TorchModel) -> ExportedProgram:
    """The module's graph, in evaluation mode. Raises SourceError that says why there is none."""
    return frozen(model, copied(model).module)


def frozen(model: TorchModel, module: torch.nn.Module) -> ExportedProgram:
    """The graph of `module`, which takes and gives what the model does."""
    try:
        with quiet(), torch.no_grad():
            return torch.export.export(module, _example(model), dynamic_shapes=_dynamic(model))
    except Exception as error:
        raise SourceError(f"{_name(model)} cannot be exported: {_reason(error)}") from error


def to_onnx(
    model: TorchModel,
    path: Path,
    program: ExportedProgram | None = None,
    opset: int | None = None,
) -> OnnxModel:
    """Write the module as ONNX, constants folded and operators fused. Raises SourceError.

    `program`: its graph, where that is made already. `opset`: the exporter's own by default.
    """
    program = exported(model) if program is None else program
    try:
        with quiet():
            made = torch.onnx.export(
                program,
                input_names=list(model.example),
                output_names=list(model.outputs),
                opset_version=opset,
                dynamo=True,
                optimize=True,
                verbose=False,
            )
            assert made is not None
            # They tell the paths of the source, line by line.
            ClearMetadataAndDocStringPass()(made.model)
            made.save(path, external_data=_bytes(model) > EXTERNAL_BYTES)
    except Exception as error:
        raise SourceError(f"{_name(model)} cannot be written as ONNX: {_reason(error)}") from error
    return OnnxModel(path)


def to_pt2(model: TorchModel, path: Path) -> Path:
    """Write the module as a `.pt2` archive. Raises SourceError."""
    program = exported(model)
    with quiet(), path.open("wb") as file:
        torch.export.save(program, file)
    return path


def _named(module: torch.nn.Module, example: Any) -> Tensors:
    names = list(inspect.signature(module.forward).parameters)
    if isinstance(example, Mapping):
        # Inputs are given by place, so in the order of `forward` where it has these names.
        order = sorted(example, key=names.index) if set(example) <= set(names) else list(example)
        return {name: _array(example[name]) for name in order}
    values = example if isinstance(example, tuple | list) else (example,)
    if len(names) < len(values):
        raise SourceError(
            f"{type(module).__name__} takes {len(names)} inputs ({', '.join(names)}), and "
            f"{len(values)} examples are given"
        )
    return {name: _array(value) for name, value in zip(names, values, strict=False)}


def _array(value: Any) -> Any:
    return torch.as_tensor(value).detach().cpu().numpy()


def _output_names(count: int, inputs: Collection[str]) -> tuple[str, ...]:
    """Those that no input has."""
    base = "output"
    while True:
        names = (base,) if count == 1 else tuple(f"{base}_{at}" for at in range(count))
        if not set(names) & set(inputs):
            return names
        base += "_"


def _require_unique(outputs: Sequence[str], inputs: Collection[str]) -> None:
    for at, name in enumerate(outputs):
        if name in inputs:
            raise SourceError(f"output {at} is called {name!r}, as an input is; give another name")
        if name in outputs[:at]:
            raise SourceError(f"two outputs are called {name!r}; give each a name of its own")


def _require_axes(inputs: Tensors, axes: Axes) -> None:
    for name, own in axes.items():
        if name not in inputs:
            raise SourceError(f"axes names {name!r}; inputs are {', '.join(map(repr, inputs))}")
        for axis, called in own.items():
            if axis not in range(inputs[name].ndim):
                raise SourceError(
                    f"axes of {name!r}: there is no axis {axis}; the example has the shape "
                    f"{list(inputs[name].shape)}"
                )
            _limit(called)


def _limit(called: str) -> tuple[str, int | None]:
    """An axis's name, and its greatest length where one stands after it: `tokens<=512`."""
    name, bounded, most = called.partition("<=")
    if not bounded:
        return name, None
    if not (name.strip().isidentifier() and most.strip().isdecimal() and int(most) > 1):
        raise SourceError(f"{called!r} is no axis; give its name and greatest length: tokens<=512")
    return name.strip(), int(most)


def _limits(axes: Axes) -> dict[str, int | None]:
    """Each axis's greatest length by name: the least of those that are given."""
    limits: dict[str, int | None] = {}
    for called in (called for own in axes.values() for called in own.values()):
        name, most = _limit(called)
        given = [each for each in (limits.get(name), most) if each is not None]
        limits[name] = min(given, default=None)
    return limits


def _example(model: TorchModel) -> tuple[torch.Tensor, ...]:
    return tuple(map(tensor, model.example.values()))


def _dynamic(model: TorchModel) -> tuple[dict[int, Any], ...]:
    """Axes of the same name have the same length."""
    dims = {name: Dim(name, max=most) for name, most in _limits(model.axes).items()}
    return tuple(
        {axis: dims[_limit(called)[0]] for axis, called in model.axes.get(name, {}).items()}
        for name in model.example
    )


def _bytes(model: TorchModel) -> int:
    return sum(p.numel() * p.element_size() for p in model.module.parameters())


def _name(model: TorchModel) -> str:
    return f"the module {type(model.module).__name__}"


def _reason(error: Exception) -> str:
    """What the exporter says, without its stages and advice."""
    cause = error.__cause__ if error.__cause__ is not None else error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[0] if lines else ''}"
