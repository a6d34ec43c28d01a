"""Triton's model configuration, `config.pbtxt`: read it, lay it over a spec, write it for a client.

What a file leaves out is completed from the model file. What it sets and ds-serve does not honour
is refused by name. Beyond Triton's fields, the parameter `batch_axis.<tensor>` names the axis along
which requests are joined (`none`: all requests of a batch share the tensor).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import msgspec
from google.protobuf import text_format
from google.protobuf.message import Message

from ds_engines.config_message import AXIS, CPU_ENGINES, PLATFORMS, describe, type_name, without
from ds_engines.errors import ConfigError
from ds_engines.spec import BatchPolicy, ModelSpec, TensorSpec
from ds_proto.model_config_pb2 import (
    DataType,
    ModelConfig,
    ModelDynamicBatching,
    ModelInput,
    ModelInstanceGroup,
    ModelOutput,
    ModelParameter,
)

__all__ = ["STATED_ZERO", "apply", "describe", "read"]

STATED_ZERO = -1
"""`max_batch_size: 0` as `read` gives it, because a message cannot tell 0 from nothing said."""

_ZERO = re.compile(r"(?<![\w.])max_batch_size\s*:\s*[-+]?0+(?![\w.])")
_QUOTED_OR_COMMENT = re.compile(r"\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'|#[^\n]*")
_NO_FIELD = re.compile(r"Message type \"(?:\w+\.)*(\w+)\" has no field named \"(.+)\"")


def read(path: Path) -> ModelConfig:
    """The configuration in a file. A `max_batch_size: 0` written out is given as STATED_ZERO.

    Raises ConfigError naming file, line and field.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text file: byte {error.start} is not UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    config = ModelConfig()
    try:
        text_format.Parse(text, config)
    except text_format.ParseError as error:
        raise ConfigError(_explain(path, text, error)) from None
    if config.max_batch_size < 0:
        raise ConfigError(f"{path}: max_batch_size is {config.max_batch_size}, it must be >= 0")
    if not config.max_batch_size and _ZERO.search(_QUOTED_OR_COMMENT.sub(" ", text)):
        config.max_batch_size = STATED_ZERO
    return config


def apply(spec: ModelSpec, config: ModelConfig, source: str) -> ModelSpec:
    """`spec`, which the model file has completed, with what `config` says laid over it.

    A model whose rows could not be proven independent is batched where `max_batch_size` is above
    0: the operator has said so. Raises ConfigError naming `source` and the field.
    """
    _refuse_other(config, source, "", _HONOURED)
    _check_identity(spec, config, source)
    axes = _axes(spec, config.parameters, source)
    spec = _batched(_with_axes(spec, axes), config, axes, source)
    spec = msgspec.structs.replace(
        spec,
        inputs=_tensors(spec, spec.inputs, config.input, source, "input"),
        outputs=_tensors(spec, spec.outputs, config.output, source, "output"),
        slots=_slots(spec, config.instance_group, source) or spec.slots,
    )
    if not config.HasField("dynamic_batching"):
        return spec
    policy = _policy(spec.batch, config.dynamic_batching, source)
    return msgspec.structs.replace(spec, batch=policy)


# ---- what a parse error says


def _explain(path: Path, text: str, error: text_format.ParseError) -> str:
    line, column = error.GetLine() or 0, error.GetColumn() or 0
    message = str(error).removeprefix(f"{line}:{column} : ")
    lines = text.split("\n")
    if line and message.startswith(f"'{lines[line - 1]}': "):
        message = message.removeprefix(f"'{lines[line - 1]}': ")
    unknown = _NO_FIELD.search(message)
    if unknown:
        return f"{path}:{line}: {_unknown(*unknown.groups())}"
    before = "\n".join([*lines[: line - 1], lines[line - 1][: column - 1]]) if line else ""
    fields = re.findall(r"([A-Za-z_]\w*)\s*:", _QUOTED_OR_COMMENT.sub(" ", before))
    where = f"field {fields[-1]!r}: " if fields and "field" not in message else ""
    return f"{path}:{line}: {where}{message}"


def _unknown(message: str, field: str) -> str:
    descriptor = ModelConfig.DESCRIPTOR.file.message_types_by_name.get(message)
    names = [] if descriptor is None else [*descriptor.fields_by_name]
    close = get_close_matches(field, names, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{message} has no field {field!r}{hint}"


# ---- what is refused


def _default_versions(value: Any) -> bool:
    return not value.ByteSize() or (value.HasField("latest") and value.latest.num_versions <= 1)


def _any(_: object) -> bool:
    return True


def _falsy(value: Any) -> bool:
    """Nothing set that would change anything, such as `response_cache { enable: false }`."""
    return not value.ByteSize() if isinstance(value, Message) else not value


Honoured = Mapping[str, Callable[[Any], bool]]

_HONOURED: Honoured = {
    "name": _any,
    "platform": _any,
    "backend": _any,
    "default_model_filename": _any,
    "version_policy": _default_versions,
    "max_batch_size": _any,
    "input": _any,
    "output": _any,
    "dynamic_batching": _any,
    "instance_group": _any,
    "parameters": _any,
}
_HONOURED_TENSOR: Honoured = dict.fromkeys(["name", "data_type", "dims"], _any)
_HONOURED_GROUP: Honoured = dict.fromkeys(["name", "kind", "count"], _any)
_HONOURED_BATCHING: Honoured = dict.fromkeys(
    ["preferred_batch_size", "max_queue_delay_microseconds", "default_queue_policy"], _any
)
_HONOURED_QUEUE: Honoured = dict.fromkeys(["default_timeout_microseconds", "max_queue_size"], _any)


def _refuse_other(message: Message, source: str, path: str, honoured: Honoured) -> None:
    """Refuse each field that is set, changes something and is not honoured."""
    for field, value in message.ListFields():
        chosen = field.containing_oneof is not None
        if honoured.get(field.name, _falsy)(value) and (field.name in honoured or not chosen):
            continue
        raise ConfigError(
            f"{source}: field {path + field.name!r} is not supported"
            + (" other than latest { num_versions: 1 }" if field.name == "version_policy" else "")
        )


def _check_identity(spec: ModelSpec, config: ModelConfig, source: str) -> None:
    expected = {
        "name": spec.name,
        "backend": spec.engine,
        "platform": PLATFORMS.get(spec.engine, spec.platform),
        "default_model_filename": spec.artifact.name,
    }
    for field, value in expected.items():
        given = getattr(config, field)
        if given and given != value:
            raise ConfigError(f"{source}: {field} is {given!r}, but this model's is {value!r}")


# ---- batching


def _axes(
    spec: ModelSpec, parameters: Mapping[str, ModelParameter], source: str
) -> dict[str, int | None]:
    """Tensor name to batch axis, of the tensors that the parameters name."""
    known = {tensor.name: tensor for tensor in (*spec.inputs, *spec.outputs)}
    axes: dict[str, int | None] = {}
    for key, parameter in sorted(parameters.items()):
        name = key.removeprefix(AXIS)
        if name == key:
            raise ConfigError(
                f"{source}: parameter {key!r} is not supported; known is {AXIS}<tensor>"
            )
        if name not in known:
            raise ConfigError(f"{source}: parameter {key!r}: {_no_tensor(name, known)}")
        axes[name] = _axis(known[name], parameter.string_value, f"{source}: parameter {key!r}")
    return axes


def _axis(tensor: TensorSpec, value: str, where: str) -> int | None:
    if value == "none":
        return None
    dynamic = [str(axis) for axis, size in enumerate(tensor.shape) if size == -1]
    if value in dynamic:
        return int(value)
    raise ConfigError(
        f"{where} is {value!r}; it must be 'none' or an axis of {_show(tensor.shape)} "
        f"that may vary ({', '.join(dynamic) or 'there is none'})"
    )


def _with_axes(spec: ModelSpec, axes: Mapping[str, int | None]) -> ModelSpec:
    def changed(tensors: Iterable[TensorSpec]) -> tuple[TensorSpec, ...]:
        return tuple(
            msgspec.structs.replace(t, batch_axis=axes.get(t.name, t.batch_axis)) for t in tensors
        )

    return msgspec.structs.replace(spec, inputs=changed(spec.inputs), outputs=changed(spec.outputs))


def _batched(
    spec: ModelSpec, config: ModelConfig, axes: Mapping[str, int | None], source: str
) -> ModelSpec:
    """The spec with its `max_batch_size`, and a batch axis wherever that asks for one."""
    size = config.max_batch_size
    if size == 0 and not _whole(spec, config):
        if axes and not spec.batch.max_batch_size:
            raise ConfigError(f"{source}: parameters name batch axes: max_batch_size must be set")
        return spec
    proven = bool(spec.batch.max_batch_size)
    policy = msgspec.structs.replace(spec.batch, max_batch_size=max(size, 0))
    spec = msgspec.structs.replace(spec, batch=policy)
    if size <= 0:
        return spec
    if not proven:
        spec = _with_axes(spec, {**axes, **_first_axes(spec, axes, size, source)})
    if all(tensor.batch_axis is None for tensor in spec.inputs):
        raise ConfigError(f"{source}: max_batch_size is {size}, but no input has a batch axis")
    return spec


def _whole(spec: ModelSpec, config: ModelConfig) -> bool:
    """Whether some `dims` include the batch axis: a model so described is not batched."""
    given = {tensor.name: len(tensor.dims) for tensor in config.input}
    given |= {tensor.name: len(tensor.dims) for tensor in config.output}
    return any(
        tensor.batch_axis is not None and given.get(tensor.name) == len(tensor.shape)
        for tensor in (*spec.inputs, *spec.outputs)
    )


def _first_axes(
    spec: ModelSpec, axes: Mapping[str, int | None], size: int, source: str
) -> dict[str, int | None]:
    """Axis 0 for each tensor that no parameter names, as `max_batch_size` means in Triton."""
    unnamed = [t for t in (*spec.inputs, *spec.outputs) if t.name not in axes]
    for tensor in unnamed:
        if tensor.shape[:1] != (-1,):
            raise ConfigError(
                f"{source}: max_batch_size is {size}, but the first axis of {tensor.name!r}, "
                f"{_show(tensor.shape)}, cannot vary; name its batch axis, or none, with the "
                f"parameter {AXIS + tensor.name!r}"
            )
    return dict.fromkeys((tensor.name for tensor in unnamed), 0)


def _policy(batch: BatchPolicy, given: ModelDynamicBatching, source: str) -> BatchPolicy:
    _refuse_other(given, source, "dynamic_batching.", _HONOURED_BATCHING)
    queue = given.default_queue_policy
    _refuse_other(queue, source, "dynamic_batching.default_queue_policy.", _HONOURED_QUEUE)
    if not batch.max_batch_size:
        raise ConfigError(f"{source}: dynamic_batching is set, but the model is not batched")
    for size in given.preferred_batch_size:
        if not 0 < size <= batch.max_batch_size:
            raise ConfigError(
                f"{source}: dynamic_batching.preferred_batch_size {size} is not between 1 and "
                f"max_batch_size {batch.max_batch_size}"
            )
    return msgspec.structs.replace(
        batch,
        preferred_sizes=tuple(given.preferred_batch_size) or batch.preferred_sizes,
        max_delay_us=given.max_queue_delay_microseconds or batch.max_delay_us,
        max_queue_size=queue.max_queue_size or batch.max_queue_size,
        timeout_us=queue.default_timeout_microseconds or batch.timeout_us,
    )


def _slots(spec: ModelSpec, groups: Iterable[ModelInstanceGroup], source: str) -> int:
    slots = 0
    for group in groups:
        _refuse_other(group, source, "instance_group.", _HONOURED_GROUP)
        kind = ModelInstanceGroup.Kind.Name(group.kind)
        if kind not in ("KIND_AUTO", "KIND_CPU") and spec.engine in CPU_ENGINES:
            raise ConfigError(
                f"{source}: instance_group.kind is {kind}, but {spec.engine} runs on the CPU; "
                "it must be KIND_CPU or KIND_AUTO"
            )
        if group.count < 0:
            raise ConfigError(f"{source}: instance_group.count is {group.count}, it must be >= 1")
        slots += group.count or 1
    return slots


# ---- tensors


def _tensors(
    spec: ModelSpec,
    known: tuple[TensorSpec, ...],
    given: Iterable[ModelInput | ModelOutput],
    source: str,
    what: str,
) -> tuple[TensorSpec, ...]:
    found = {tensor.name: tensor for tensor in known}
    seen: set[str] = set()
    for tensor in given:
        where = f"{source}: {what} {tensor.name!r}"
        if tensor.name not in found:
            raise ConfigError(f"{where}: {_no_tensor(tensor.name, found)}")
        if tensor.name in seen:
            raise ConfigError(f"{where} is there twice")
        seen.add(tensor.name)
        _refuse_other(tensor, source, f"{what}.", _HONOURED_TENSOR)
        _check_type(found[tensor.name], tensor, where)
        found[tensor.name] = _shaped(spec, found[tensor.name], tuple(tensor.dims), where)
    return tuple(found.values())


def _check_type(known: TensorSpec, given: ModelInput | ModelOutput, where: str) -> None:
    expected = type_name(known.datatype)
    got = DataType.Name(given.data_type)
    if got not in ("TYPE_INVALID", expected):
        raise ConfigError(f"{where}: data_type is {got}, but the model file has {expected}")


def _shaped(spec: ModelSpec, known: TensorSpec, dims: tuple[int, ...], where: str) -> TensorSpec:
    """The tensor with the sizes that `dims` fixes; no `dims` leaves it as the file has it."""
    if not dims:
        return known
    axis = known.batch_axis if spec.batch.max_batch_size else None
    rest = without(known.shape, axis)
    fits = len(dims) == len(rest) and all(
        given == size or (size == -1 and given > 0) for given, size in zip(dims, rest, strict=True)
    )
    if not fits:
        batch = f" without the batch axis {axis}" if axis is not None else ""
        raise ConfigError(
            f"{where}: dims are {_show(dims)}, but the model file has {_show(rest)}{batch}"
        )
    shape = dims if axis is None else (*dims[:axis], known.shape[axis], *dims[axis:])
    return msgspec.structs.replace(known, shape=shape)


def _show(shape: Iterable[int]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _no_tensor(name: str, known: Iterable[str]) -> str:
    return f"the model has no tensor {name!r} there; it has {', '.join(known)}"
