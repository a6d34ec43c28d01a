"""Programs that torch.export has saved."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
import torch
from torch.utils import _pytree as trees

from ds_engines.batch_axes import joined
from ds_engines.errors import LoadError, Unsupported
from ds_engines.precision import FP32
from ds_engines.spec import ModelSpec, TensorSpec
from ds_engines.torch_archive import refuse_pickles

DATATYPES = {
    torch.bool: "BOOL",
    torch.uint8: "UINT8",
    torch.uint16: "UINT16",
    torch.uint32: "UINT32",
    torch.uint64: "UINT64",
    torch.int8: "INT8",
    torch.int16: "INT16",
    torch.int32: "INT32",
    torch.int64: "INT64",
    torch.float16: "FP16",
    torch.bfloat16: "BF16",
    torch.float32: "FP32",
    torch.float64: "FP64",
}

SAFE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"

Symbols = dict[str, tuple[object, ...]]


class Exported:
    """A program as a module on a device. `spec` is what it says of itself; what it takes to be
    called are tensors by the names of its inputs.
    """

    def __init__(self, spec: ModelSpec, device: torch.device, dtype: str) -> None:
        program = _loaded(spec)
        _require_whole(spec, program, dtype)
        self._arguments = _Arguments(spec, program)
        self.spec = _described(spec, program, self._arguments)
        self.module: Any = _moved(program, device).module()

    def call(self, tensors: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        """Its answers, in the order of the spec's outputs."""
        args, kwargs = self._arguments.of(tensors)
        found: list[torch.Tensor] = trees.tree_leaves(self.module(*args, **kwargs))
        return found

    def leaves(self, tensors: Mapping[str, torch.Tensor]) -> list[Any]:
        """What the program's graph takes, in order."""
        return self._arguments.leaves(tensors)


def _moved(
    program: torch.export.ExportedProgram, device: torch.device
) -> torch.export.ExportedProgram:
    held = [*program.state_dict.values(), *program.constants.values()]
    there = all(getattr(each, "device", device).type == device.type for each in held)
    if there and device.type == "cpu":
        return program
    from torch.export.passes import move_to_device_pass  # noqa: PLC0415 - most need no move

    return move_to_device_pass(program, str(device))


def _require_whole(spec: ModelSpec, program: torch.export.ExportedProgram, dtype: str) -> None:
    """Raises Unsupported where FP32 is wanted of weights that have 16 bits."""
    halves = (torch.float16, torch.bfloat16)
    for name, weight in program.state_dict.items():
        if dtype == FP32 and weight.dtype in halves:
            raise Unsupported(
                f"--dtype fp32: {spec.artifact} has weights of 16 bits, such as {name!r}, which "
                f"is {weight.dtype}; export the model in FP32"
            )


class _Arguments:
    """How tensors by name become what the program is called with. `values` are what it takes, in
    order: names of inputs, and in other places constants.
    """

    def __init__(self, spec: ModelSpec, program: torch.export.ExportedProgram) -> None:
        self.names: list[str] = []
        self._values: list[tuple[str, Any]] = []
        for given in program.graph_signature.input_specs:
            if given.kind.name != "USER_INPUT":
                continue
            name = getattr(given.arg, "name", "")
            if hasattr(given.arg, "value"):
                self._values.append(("", given.arg.value))
            elif type(given.arg).__name__ == "TensorArgument":
                self.names.append(name)
                self._values.append((name, None))
            else:
                raise LoadError(f"{spec.artifact}: input {name!r} is no tensor: {given.arg}")
        self._shape = program.call_spec.in_spec

    def leaves(self, tensors: Mapping[str, torch.Tensor]) -> list[Any]:
        return [tensors[name] if name else value for name, value in self._values]

    def of(self, tensors: Mapping[str, torch.Tensor]) -> tuple[Sequence[Any], dict[str, Any]]:
        args, kwargs = trees.tree_unflatten(self.leaves(tensors), self._shape)
        return args, kwargs


def _loaded(spec: ModelSpec) -> torch.export.ExportedProgram:
    refuse_pickles(spec.artifact)
    try:
        with _unpickling_nothing():
            return torch.export.load(spec.artifact)
    except Exception as error:
        raise LoadError(
            f"{spec.artifact} is not a program that PyTorch {torch.__version__} can load: "
            f"{said(error)}"
        ) from error


@contextlib.contextmanager
def _unpickling_nothing() -> Iterator[None]:
    """torch.export.load unpickles where PyTorch's safe reader refuses, unless it is told not to.
    It logs a traceback before it raises.
    """
    log, before = logging.getLogger("torch.export"), os.environ.get(SAFE)
    level = log.level
    log.setLevel(logging.CRITICAL)
    os.environ[SAFE] = "1"
    try:
        yield
    finally:
        log.setLevel(level)
        os.environ.pop(SAFE)
        if before is not None:
            os.environ[SAFE] = before


def _described(
    spec: ModelSpec, program: torch.export.ExportedProgram, arguments: _Arguments
) -> ModelSpec:
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    symbols: Symbols = {name: _symbols(values[name]) for name in arguments.names}
    inputs = [_spec(spec, name, values[name]) for name in arguments.names]
    nodes = _answers(spec, program)
    names = names_of(program.call_spec.out_spec)
    outputs = [_spec(spec, name, values[node]) for name, node in zip(names, nodes, strict=True)]
    found = msgspec.structs.replace(
        spec,
        platform="pytorch_export",
        inputs=tuple(joined(inputs, symbols)),
        outputs=tuple(outputs),
    )
    return _bounded(found, program, symbols)


def _answers(spec: ModelSpec, program: torch.export.ExportedProgram) -> list[str]:
    """The nodes of what the program returns."""
    found = []
    for out in program.graph_signature.output_specs:
        if out.kind.name == "USER_OUTPUT":
            if type(out.arg).__name__ != "TensorArgument":
                raise LoadError(f"{spec.artifact}: an output is no tensor: {out.arg}")
            found.append(out.arg.name)
    return found


def names_of(shape: trees.TreeSpec) -> list[str]:
    """Of outputs, by where they are in what the program returns: the key of a dict, output_0 and
    so on of a tuple, `output` of one tensor alone, parts joined by `_` further in.
    """
    places = trees.tree_unflatten(range(shape.num_leaves), shape)
    paths = [path for path, _ in trees.tree_flatten_with_path(places)[0]]
    parts = [[str(getattr(key, "key", getattr(key, "idx", key))) for key in path] for path in paths]
    return [
        "_".join(each if each and not each[0].isdigit() else ["output", *each]) for each in parts
    ]


def _spec(spec: ModelSpec, name: str, value: Any) -> TensorSpec:
    if value.dtype not in DATATYPES:
        raise LoadError(
            f"{spec.artifact}: tensor {name!r} is of {value.dtype}, which cannot be served"
        )
    shape = tuple(size if isinstance(size, int) else -1 for size in value.shape)
    return TensorSpec(name=name, datatype=DATATYPES[value.dtype], shape=shape)


def _symbols(value: Any) -> tuple[object, ...]:
    return tuple(size if isinstance(size, int) else str(size) for size in value.shape)


def _bounded(spec: ModelSpec, program: torch.export.ExportedProgram, symbols: Symbols) -> ModelSpec:
    """With batches no larger than the program was exported for."""
    most = {str(symbol): limits.upper for symbol, limits in program.range_constraints.items()}
    rows = [
        int(most[str(symbols[tensor.name][tensor.batch_axis])])
        for tensor in spec.inputs
        if tensor.batch_axis is not None
        and getattr(most.get(str(symbols[tensor.name][tensor.batch_axis])), "is_Integer", False)
    ]
    size = min([spec.batch.max_batch_size, *rows])
    batch = msgspec.structs.replace(spec.batch, max_batch_size=size)
    return msgspec.structs.replace(spec, batch=batch)


def said(error: Exception) -> str:
    """What an error says, without where."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))
