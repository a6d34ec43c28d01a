"""Inputs that no client sends: those of warm-ups, and a sequence's controls and first states."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ds_engines import datatypes
from ds_engines.base import Array, Tensors
from ds_engines.errors import InvalidRequest, LoadError
from ds_engines.spec import Control, ModelSpec, StateTensor, TensorSpec, WarmUp

Shape = tuple[int, ...]

MOST_RANDOM = 2
"""Random whole numbers are 0 or 1: they may be indices."""


def shape_of(spec: ModelSpec, tensor: TensorSpec, dims: Sequence[int], rows: int = 1) -> Shape:
    """The shape of so many rows; `dims` are one's. An axis that varies has one element."""
    sizes = tuple(1 if size == -1 else size for size in dims)
    axis = tensor.batch_axis if spec.batch.max_batch_size else None
    return sizes if axis is None else (*sizes[:axis], rows, *sizes[axis:])


def zeros(datatype: str, shape: Shape) -> Array:
    if datatype == "BYTES":
        return np.full(shape, b"", dtype=np.object_)
    return np.zeros(shape, datatypes.DATATYPES[datatype].dtype)


def from_file(file: str, datatype: str, shape: Shape) -> Array:
    """The tensor in a file, in KServe's binary form. Raises LoadError."""
    try:
        data = Path(file).read_bytes()
        return datatypes.to_array(datatype, shape, data, file)
    except OSError as error:
        raise LoadError(f"{file} cannot be read: {error.strerror}") from None
    except InvalidRequest as error:
        raise LoadError(f"{file} is not {datatype}{list(shape)}: {error}") from None


def warm_up_batch(spec: ModelSpec, warm_up: WarmUp) -> Tensors:
    """The whole batch that a warm-up is. Raises LoadError for a file of another size."""
    batch = first_states(spec, warm_up.batch_size)
    controls = spec.sequence.controls if spec.sequence is not None else ()
    for control in controls:
        one = control_array(spec, control, _first(control))
        batch[control.input] = _repeated(spec, control.input, one, warm_up.batch_size)
    for given in warm_up.inputs:
        tensor = spec.input(given.name)
        assert tensor is not None, "the configuration was checked"
        shape = shape_of(spec, tensor, given.dims)
        if given.source in ("zero", "random"):
            shape = shape_of(spec, tensor, given.dims, warm_up.batch_size)
            make = zeros if given.source == "zero" else _random
            batch[given.name] = make(given.datatype, shape)
        else:
            one = from_file(given.source, given.datatype, shape)
            batch[given.name] = _repeated(spec, given.name, one, warm_up.batch_size)
    return batch


def _first(control: Control) -> bool | str:
    """What a first request is told; its sequence has no name yet."""
    if control.kind == "CORRID":
        return "" if control.datatype == "BYTES" else False
    return control.kind != "END"


def first_states(spec: ModelSpec, rows: int = 1) -> Tensors:
    """What a sequence's first request gets as its state, so many times."""
    states = spec.sequence.states if spec.sequence is not None else ()
    return {
        state.input: _repeated(spec, state.input, _first_state(spec, state), rows)
        for state in states
    }


def _first_state(spec: ModelSpec, state: StateTensor) -> Array:
    tensor = spec.input(state.input)
    assert tensor is not None, "the configuration was checked"
    dims = state.dims if state.initial_dims is None else state.initial_dims
    shape = shape_of(spec, tensor, dims)
    if state.file:
        return from_file(state.file, state.datatype, shape)
    return zeros(state.datatype, shape)


def control_array(spec: ModelSpec, control: Control, value: bool | int | str) -> Array:
    """A control of one request: true or false, or a CORRID's id. Raises InvalidRequest."""
    tensor = spec.input(control.input)
    assert tensor is not None, "the configuration was checked"
    shape = tuple(abs(size) for size in tensor.shape)
    if control.kind == "CORRID":
        return _corrid(spec, control, value, shape)
    dtype = datatypes.DATATYPES[control.datatype].dtype
    return np.full(shape, control.values[bool(value)], dtype=dtype)


def _corrid(spec: ModelSpec, control: Control, value: int | str, shape: Shape) -> Array:
    """A number longer than the tensor's type loses its upper half."""
    if isinstance(value, str) is not (control.datatype == "BYTES"):
        wanted = "a text" if control.datatype == "BYTES" else "a number"
        raise InvalidRequest(
            f"sequence_id is {value!r}; model {spec.name!r} is told it as {control.datatype}, "
            f"so it must be {wanted}"
        )
    if isinstance(value, str):
        return np.full(shape, value.encode(), dtype=np.object_)
    dtype = datatypes.DATATYPES[control.datatype].dtype
    bits = np.array(value, np.uint64).astype(np.dtype(f"uint{8 * dtype.itemsize}"))
    return np.full(shape, bits.view(dtype))


def _random(datatype: str, shape: Shape) -> Array:
    """Real numbers of 0 to 1; texts are empty, as there are no random ones."""
    random = np.random.default_rng(0)
    dtype = datatypes.DATATYPES[datatype].dtype
    if datatype == "BYTES":
        return zeros(datatype, shape)
    if datatype == "BF16":
        return datatypes.float32_to_bf16(random.random(shape, np.float32))
    if np.issubdtype(dtype, np.floating):
        return np.asarray(random.random(shape)).astype(dtype)
    return np.asarray(random.integers(0, MOST_RANDOM, shape)).astype(dtype)


def _repeated(spec: ModelSpec, name: str, one: Array, rows: int) -> Array:
    tensor = spec.input(name)
    axis = None if tensor is None or not spec.batch.max_batch_size else tensor.batch_axis
    return one if axis is None or rows == 1 else np.concatenate([one] * rows, axis=axis)
