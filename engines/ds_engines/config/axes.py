"""Along which axis requests are joined, where a configuration says so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from ds_engines.config.tensors import no_tensor, own_shape, show
from ds_engines.config_message import AXIS
from ds_engines.errors import ConfigError
from ds_engines.spec import ModelSpec, TensorSpec
from ds_proto.model_config_pb2 import ModelConfig, ModelParameter


def axes(
    spec: ModelSpec, parameters: Mapping[str, ModelParameter], source: str
) -> dict[str, int | None]:
    """Tensor name to batch axis, of the tensors that the parameters name; others are ignored."""
    known = {tensor.name: tensor for tensor in (*spec.inputs, *spec.outputs)}
    axes: dict[str, int | None] = {}
    for key, parameter in sorted(parameters.items()):
        name = key.removeprefix(AXIS)
        if name == key:
            continue  # meant for a backend of Triton's, which ignore those that they do not know
        if name not in known:
            raise ConfigError(f"{source}: parameter {key!r}: {no_tensor(name, known)}")
        axes[name] = _axis(known[name], parameter.string_value, f"{source}: parameter {key!r}")
    return axes


def _axis(tensor: TensorSpec, value: str, where: str) -> int | None:
    if value == "none":
        return None
    dynamic = [str(axis) for axis, size in enumerate(tensor.shape) if size == -1]
    if value in dynamic:
        return int(value)
    raise ConfigError(
        f"{where} is {value!r}; it must be 'none' or an axis of {show(tensor.shape)} "
        f"that may vary ({', '.join(dynamic) or 'there is none'})"
    )


def with_axes(spec: ModelSpec, axes: Mapping[str, int | None]) -> ModelSpec:
    def changed(tensors: Iterable[TensorSpec]) -> tuple[TensorSpec, ...]:
        return tuple(
            msgspec.structs.replace(t, batch_axis=axes.get(t.name, t.batch_axis)) for t in tensors
        )

    return msgspec.structs.replace(spec, inputs=changed(spec.inputs), outputs=changed(spec.outputs))


def batched(
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
        spec = with_axes(spec, {**axes, **_first_axes(spec, axes, size, source)})
    if all(tensor.batch_axis is None for tensor in spec.inputs):
        raise ConfigError(f"{source}: max_batch_size is {size}, but no input has a batch axis")
    return spec


def _whole(spec: ModelSpec, config: ModelConfig) -> bool:
    """Whether some `dims` include the batch axis: a model so described is not batched."""
    given = {tensor.name: len(own_shape(tensor)) for tensor in config.input}
    given |= {tensor.name: len(own_shape(tensor)) for tensor in config.output}
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
                f"{show(tensor.shape)}, cannot vary; name its batch axis, or none, with the "
                f"parameter {AXIS + tensor.name!r}"
            )
    return dict.fromkeys((tensor.name for tensor in unnamed), 0)
