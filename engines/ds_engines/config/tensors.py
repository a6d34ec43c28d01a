"""Inputs and outputs: what a configuration says of them must be what the model file has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from ds_engines.config.refusals import Honoured, honoured, refuse_other
from ds_engines.config_message import type_name, without
from ds_engines.datatypes import DATATYPES
from ds_engines.errors import ConfigError
from ds_engines.spec import ModelSpec, TensorSpec
from ds_proto.model_config_pb2 import DataType, ModelInput, ModelOutput

Shape = tuple[int, ...]

MOST_NAMES = 10
"""In a message: older model files have a value for every weight."""

_HONOURED: Honoured = honoured(
    "name", "data_type", "dims", "label_filename", "format", "reshape", "optional"
)


def overlaid(
    spec: ModelSpec,
    known: tuple[TensorSpec, ...],
    given: Iterable[ModelInput | ModelOutput],
    source: str,
    what: str,
) -> tuple[TensorSpec, ...]:
    found = {tensor.name: tensor for tensor in known}
    spare = {tensor.name: tensor for tensor in spec.defaulted if what == "input"}
    seen: set[str] = set()
    for tensor in given:
        where = f"{source}: {what} {tensor.name!r}"
        if tensor.name in spare and tensor.name not in found:
            found[tensor.name] = _with_rows(spec, spare[tensor.name], tensor)
        if tensor.name not in found:
            raise ConfigError(f"{where}: {no_tensor(tensor.name, found)}")
        if tensor.name in seen:
            raise ConfigError(f"{where} is there twice")
        seen.add(tensor.name)
        refuse_other(tensor, source, f"{what}.", _HONOURED)
        check_type(found[tensor.name], tensor.data_type, where)
        shaped = _shaped(spec, found[tensor.name], tensor, where)
        if isinstance(tensor, ModelInput):
            shaped = _as_input(shaped, tensor, spare, where)
        found[tensor.name] = shaped
    return tuple(found.values())


def _as_input(
    known: TensorSpec, given: ModelInput, spare: Mapping[str, TensorSpec], where: str
) -> TensorSpec:
    if given.format:
        name = ModelInput.Format.Name(given.format)
        known = msgspec.structs.replace(known, format=name)
    if not given.optional or known.optional:
        return known
    if known.name not in spare:
        raise ConfigError(
            f"{where} is optional, but the model cannot do without it: the model file has no value "
            f"for it; {_values(spare)}"
        )
    return msgspec.structs.replace(known, optional=True)


def _values(spare: Mapping[str, TensorSpec]) -> str:
    if not spare:
        return "there is no input that it has a value for"
    names = [*spare]
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return f"it has values for {', '.join(names[:MOST_NAMES])}{more}"


def _with_rows(spec: ModelSpec, known: TensorSpec, given: ModelInput | ModelOutput) -> TensorSpec:
    """One that the model file has a value for: its first axis holds rows where `dims` lack it."""
    lacking = len(own_shape(given)) == len(known.shape) - 1
    if lacking and spec.batch.max_batch_size and known.shape[0] == -1:
        return msgspec.structs.replace(known, batch_axis=0)
    return known


def declared(
    given: Iterable[ModelInput | ModelOutput], size: int, where: str, *, brain: bool = False
) -> tuple[TensorSpec, ...]:
    """The tensors of a model of which only its configuration says what it takes and gives.

    `size` is its max_batch_size; `brain`: BF16 may be among their types. Raises ConfigError.
    """
    return tuple(_declared(tensor, size, f"{where} {tensor.name!r}", brain) for tensor in given)


def _declared(given: ModelInput | ModelOutput, size: int, where: str, brain: bool) -> TensorSpec:
    if not given.name:
        raise ConfigError(f"{where}: a tensor needs a name")
    dims = own_shape(given)
    if any(size != -1 and size < 1 for size in dims):
        raise ConfigError(
            f"{where}: its dims or reshape.shape are {list(dims)}; each must be -1 or above 0"
        )
    return TensorSpec(
        name=given.name,
        datatype=_datatype(given.data_type, where, brain),
        shape=(-1, *dims) if size else dims,
        batch_axis=0 if size else None,
        optional=isinstance(given, ModelInput) and given.optional,
    )


def _datatype(data_type: DataType, where: str, brain: bool) -> str:
    name = DataType.Name(data_type).removeprefix("TYPE_")
    name = "BYTES" if name == "STRING" else name
    if name not in DATATYPES or (name == "BF16" and not brain):
        raise ConfigError(f"{where}: data_type is TYPE_{name}, which numpy has not")
    return name


def own_shape(given: ModelInput | ModelOutput) -> Shape:
    """What a configuration says of the model's own shape."""
    return tuple(given.reshape.shape if given.HasField("reshape") else given.dims)


def _shaped(
    spec: ModelSpec, known: TensorSpec, given: ModelInput | ModelOutput, where: str
) -> TensorSpec:
    """The tensor with the sizes that `dims` fixes; no `dims` leaves it as the file has it."""
    dims = tuple(given.dims)
    if given.HasField("reshape"):
        return _reshaped(spec, known, dims, tuple(given.reshape.shape), where)
    if not dims:
        return known
    check_dims(spec, known, dims, where)
    return msgspec.structs.replace(known, shape=_whole(known, dims, row_axis(spec, known)))


def _reshaped(
    spec: ModelSpec, known: TensorSpec, dims: Shape, own: Shape, where: str
) -> TensorSpec:
    """The tensor with `dims` for clients, where `own` is the model's shape."""
    axis = row_axis(spec, known)
    if axis:
        raise ConfigError(
            f"{where}: reshape needs the batch axis to be the first, but it is axis {axis}"
        )
    check_dims(spec, known, own, where, "reshape.shape is")
    check_reshape(dims, own, where)
    return msgspec.structs.replace(
        known, shape=_whole(known, dims, axis), reshape=_whole(known, own, axis)
    )


def check_reshape(dims: Shape, own: Shape, where: str) -> None:
    """Raises ConfigError where tensors of one shape cannot be had as the other."""
    if not dims or not all(size == -1 or size > 0 for size in dims):
        raise ConfigError(
            f"{where}: dims are {show(dims)}; beside a reshape they must be what clients see: "
            "sizes above 0, or -1 for any size"
        )
    if _pieces(dims) != _pieces(own):
        raise ConfigError(
            f"{where}: dims are {show(dims)} and reshape.shape is {show(own)}; both must have as "
            "many elements, and as many -1, with as many elements before, between and after them"
        )


def _pieces(shape: Shape) -> list[int]:
    """The elements before, between and after the axes that vary."""
    pieces = [1]
    for size in shape:
        if size == -1:
            pieces.append(1)
        else:
            pieces[-1] *= size
    return pieces


def _whole(known: TensorSpec, dims: Shape, axis: int | None) -> Shape:
    return dims if axis is None else (*dims[:axis], known.shape[axis], *dims[axis:])


def row_axis(spec: ModelSpec, tensor: TensorSpec) -> int | None:
    """The axis that `dims` leave out."""
    return tensor.batch_axis if spec.batch.max_batch_size else None


def check_dims(
    spec: ModelSpec, known: TensorSpec, dims: Sequence[int], where: str, what: str = "dims are"
) -> None:
    """Raises ConfigError where `dims` are not one row's, or where not batched the whole's."""
    axis = row_axis(spec, known)
    rest = without(known.shape, axis)
    fits = len(dims) == len(rest) and all(
        given == size or (size == -1 and given > 0) for given, size in zip(dims, rest, strict=True)
    )
    if not fits:
        batch = f" without the batch axis {axis}" if axis is not None else ""
        raise ConfigError(
            f"{where}: {what} {show(dims)}, but the model file has {show(rest)}{batch}"
        )


def find(known: Iterable[TensorSpec], name: str, where: str) -> TensorSpec:
    """The tensor of that name. Raises ConfigError."""
    tensors = {tensor.name: tensor for tensor in known}
    if name not in tensors:
        raise ConfigError(f"{where}: {no_tensor(name, tensors)}")
    return tensors[name]


def check_type(known: TensorSpec, data_type: DataType, where: str) -> None:
    """Raises ConfigError where the type is another; TYPE_INVALID says none."""
    expected, got = type_name(known.datatype), DataType.Name(data_type)
    if got not in ("TYPE_INVALID", expected):
        raise ConfigError(f"{where}: data_type is {got}, but the model file has {expected}")


def show(shape: Iterable[int]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def no_tensor(name: str, known: Iterable[str]) -> str:
    return f"the model has no tensor {name!r} there; it has {', '.join(known)}"
