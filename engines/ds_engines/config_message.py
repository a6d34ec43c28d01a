"""A spec as Triton's model configuration message: what the ModelConfig call answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ds_engines.spec import (
    BatchPolicy,
    Control,
    ModelSpec,
    QueuePolicy,
    SequencePolicy,
    StateTensor,
    TensorSpec,
    WarmUp,
)
from ds_proto.model_config_pb2 import (
    ModelConfig,
    ModelDynamicBatching,
    ModelQueuePolicy,
    ModelSequenceBatching,
    ModelWarmup,
)

PLATFORMS = {"onnxruntime": "onnxruntime_onnx"}
"""The older name, engine and file format in one, of each engine."""

CPU_ENGINES = {"onnxruntime", "openvino", "python", "torch"}
"""Those that run on the CPU unless their spec says that it is accelerated."""

AXIS = "batch_axis."
"""What a parameter that names a tensor's batch axis begins with."""


def describe(spec: ModelSpec) -> ModelConfig:
    """The whole configuration of a model, as Triton's clients expect it.

    To those clients a `max_batch_size` above 0 means that the first axis of every tensor is the
    batch axis and left out of `dims`. Of a model that is batched along other axes they are told
    whole shapes and 0, and the axes as parameters.
    """
    spec = spec.public
    tensors = (*spec.inputs, *spec.outputs)
    size = spec.batch.max_batch_size
    plain = all(tensor.batch_axis == 0 for tensor in tensors)
    config = ModelConfig(
        name=spec.name,
        platform=spec.platform or PLATFORMS.get(spec.engine, ""),
        backend=spec.engine,
        max_batch_size=size if plain else 0,
        default_model_filename=spec.artifact.name,
    )
    if spec.versions.every:
        config.version_policy.all.SetInParent()
    elif spec.versions.named:
        config.version_policy.specific.versions.extend(spec.versions.named)
    else:
        config.version_policy.latest.num_versions = spec.versions.latest
    for tensor in spec.inputs:
        about = _described(tensor, bool(size) and plain)
        config.input.add(optional=tensor.optional, format=tensor.format, **about)
    for tensor in spec.outputs:
        config.output.add(**_described(tensor, bool(size) and plain))
    _describe_scheduling(config, spec)
    config.response_cache.enable = spec.cached
    for warm_up in spec.warm_ups:
        _describe_warm_up(config.model_warmup.add(), warm_up)
    config.model_transaction_policy.decoupled = spec.decoupled or spec.task == "text"
    for key, value in spec.parameters.items():
        config.parameters[key].string_value = value
    if size and not plain:
        for tensor in tensors:
            axis = "none" if tensor.batch_axis is None else str(tensor.batch_axis)
            config.parameters[AXIS + tensor.name].string_value = axis
    return config


def type_name(datatype: str) -> str:
    """The configuration's name of a KServe datatype."""
    return "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"


def without(shape: tuple[int, ...], axis: int | None) -> tuple[int, ...]:
    """`shape` less one axis."""
    return shape if axis is None else shape[:axis] + shape[axis + 1 :]


def _described(tensor: TensorSpec, batched: bool) -> dict[str, Any]:
    axis = tensor.batch_axis if batched else None
    said: dict[str, Any] = {
        "name": tensor.name,
        "data_type": type_name(tensor.datatype),
        "dims": without(tensor.shape, axis),
    }
    if tensor.reshape is not None:
        said["reshape"] = {"shape": without(tensor.reshape, axis)}
    return said


def _describe_scheduling(config: ModelConfig, spec: ModelSpec) -> None:
    if spec.steps:
        _describe_steps(config, spec)
        return
    if spec.sequence is not None:
        config.sequence_batching.CopyFrom(_described_sequence(spec.batch, spec.sequence))
    elif spec.batch.max_batch_size:
        config.dynamic_batching.CopyFrom(_described_policy(spec.batch))
    on_cpu = spec.engine in CPU_ENGINES and not spec.accelerated
    kind = "KIND_CPU" if on_cpu else "KIND_AUTO"
    config.instance_group.add(name=f"{spec.name}_0", kind=kind, count=spec.slots)


def _described_policy(batch: BatchPolicy) -> ModelDynamicBatching:
    return ModelDynamicBatching(
        preferred_batch_size=batch.preferred_sizes,
        max_queue_delay_microseconds=batch.max_delay_us,
        preserve_ordering=batch.preserve_ordering,
        priority_levels=batch.priority_levels,
        default_priority_level=batch.default_priority,
        default_queue_policy=_described_queue(batch.queue_policy(0)),
        priority_queue_policy={
            level: _described_queue(queue) for level, queue in batch.priority_policies
        },
    )


def _described_queue(queue: QueuePolicy) -> ModelQueuePolicy:
    return ModelQueuePolicy(
        timeout_action=queue.timeout_action,
        default_timeout_microseconds=queue.timeout_us,
        allow_timeout_override=queue.allow_timeout_override,
        max_queue_size=queue.max_queue_size,
    )


def _described_sequence(batch: BatchPolicy, policy: SequencePolicy) -> ModelSequenceBatching:
    made = ModelSequenceBatching(max_sequence_idle_microseconds=policy.idle_us)
    if policy.strategy == "direct":
        made.direct.max_queue_delay_microseconds = policy.max_delay_us
        made.direct.minimum_slot_utilization = policy.utilization
    else:
        made.oldest.max_candidate_sequences = policy.slots // max(1, policy.instances)
        made.oldest.preferred_batch_size.extend(policy.preferred_sizes)
        made.oldest.max_queue_delay_microseconds = policy.max_delay_us
        made.oldest.preserve_ordering = batch.preserve_ordering
    for control in policy.controls:
        made.control_input.add(name=control.input).control.add(**_described_control(control))
    for state in policy.states:
        made.state.add(**_described_state(state))
    return made


def _described_control(control: Control) -> dict[str, Any]:
    said: dict[str, Any] = {"kind": f"CONTROL_SEQUENCE_{control.kind}"}
    if control.kind == "CORRID":
        said["data_type"] = type_name(control.datatype)
    elif control.datatype == "FP32":
        said["fp32_false_true"] = control.values
    elif control.datatype == "INT32":
        said["int32_false_true"] = [int(value) for value in control.values]
    else:
        said["bool_false_true"] = [bool(value) for value in control.values]
    return said


def _described_state(state: StateTensor) -> dict[str, Any]:
    kind = type_name(state.datatype)
    said: dict[str, Any] = {
        "input_name": state.input,
        "output_name": state.output,
        "data_type": kind,
        "dims": state.dims,
    }
    if state.initial_dims is not None:
        given = {"data_file": Path(state.file).name} if state.file else {"zero_data": True}
        about = {"name": state.initial_name, "data_type": kind, "dims": state.initial_dims}
        said["initial_state"] = [{**about, **given}]
    return said


def _describe_steps(config: ModelConfig, spec: ModelSpec) -> None:
    """An ensemble has no backend, no file and no queue of its own."""
    config.backend = config.default_model_filename = ""
    for step in spec.steps:
        config.ensemble_scheduling.step.add(
            model_name=step.model,
            model_version=int(step.version or -1),
            input_map=dict(step.inputs),
            output_map=dict(step.outputs),
        )


def _describe_warm_up(made: ModelWarmup, warm_up: WarmUp) -> None:
    made.name, made.batch_size, made.count = warm_up.name, warm_up.batch_size, warm_up.count
    for given in warm_up.inputs:
        source: dict[str, Any] = {f"{given.source}_data": True}
        if given.source not in ("zero", "random"):
            source = {"input_data_file": Path(given.source).name}
        one = ModelWarmup.Input(data_type=type_name(given.datatype), dims=given.dims, **source)
        made.inputs[given.name].CopyFrom(one)
