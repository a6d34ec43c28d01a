"""Dynamic batching and slots."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from ds_engines.config.refusals import honoured, refuse_other
from ds_engines.config_message import CPU_ENGINES
from ds_engines.errors import ConfigError
from ds_engines.spec import BatchPolicy, ModelSpec, QueuePolicy
from ds_proto.model_config_pb2 import ModelDynamicBatching, ModelInstanceGroup, ModelQueuePolicy

MOST_LEVELS = 1000
"""Each priority level has a bounded queue of its own, so their number must be bounded too."""

_BATCHING = honoured(
    "preferred_batch_size",
    "max_queue_delay_microseconds",
    "preserve_ordering",
    "priority_levels",
    "default_priority_level",
    "default_queue_policy",
    "priority_queue_policy",
)
_QUEUE = honoured(
    "timeout_action", "default_timeout_microseconds", "allow_timeout_override", "max_queue_size"
)
_GROUP = honoured("name", "kind", "count", "gpus")


def policy(batch: BatchPolicy, given: ModelDynamicBatching, source: str) -> BatchPolicy:
    """`batch` with what `given` says laid over it. Raises ConfigError naming the field."""
    refuse_other(given, source, "dynamic_batching.", _BATCHING)
    if not batch.max_batch_size:
        raise ConfigError(f"{source}: dynamic_batching is set, but the model is not batched")
    sizes = preferred(batch, given.preferred_batch_size, source, "dynamic_batching")
    default = _queue_policy(
        batch.queue_policy(0), given.default_queue_policy, source, "default_queue_policy"
    )
    made = msgspec.structs.replace(
        batch,
        preferred_sizes=sizes or batch.preferred_sizes,
        max_delay_us=given.max_queue_delay_microseconds or batch.max_delay_us,
        max_queue_size=default.max_queue_size,
        timeout_us=default.timeout_us,
        timeout_action=default.timeout_action,
        allow_timeout_override=default.allow_timeout_override,
        preserve_ordering=given.preserve_ordering or batch.preserve_ordering,
    )
    made = _with_levels(made, given, source)
    _check_ordering(made, source)
    return made


def preferred(batch: BatchPolicy, sizes: Iterable[int], source: str, where: str) -> tuple[int, ...]:
    """The sizes, each of which must be one that a batch can have."""
    for size in sizes:
        if not 0 < size <= max(1, batch.max_batch_size):
            raise ConfigError(
                f"{source}: {where}.preferred_batch_size {size} is not between 1 and "
                f"max_batch_size {batch.max_batch_size}"
            )
    return tuple(sizes)


def _with_levels(batch: BatchPolicy, given: ModelDynamicBatching, source: str) -> BatchPolicy:
    levels, default = given.priority_levels, given.default_priority_level
    where = f"{source}: dynamic_batching."
    if not levels:
        if default or given.priority_queue_policy:
            field = "default_priority_level" if default else "priority_queue_policy"
            raise ConfigError(f"{where}{field} is set, but priority_levels is not")
        return batch
    if levels > MOST_LEVELS:
        raise ConfigError(f"{where}priority_levels is {levels}, it must be at most {MOST_LEVELS}")
    if not 1 <= default <= levels:
        raise ConfigError(f"{where}default_priority_level is {default}, it must be 1 to {levels}")
    policies = []
    for level, queue in sorted(given.priority_queue_policy.items()):
        if not 1 <= level <= levels:
            raise ConfigError(
                f"{where}priority_queue_policy names level {level}, it must be 1 to {levels}"
            )
        default_policy = QueuePolicy(max_queue_size=batch.max_queue_size)
        made = _queue_policy(default_policy, queue, source, "priority_queue_policy")
        policies.append((level, made))
    return msgspec.structs.replace(
        batch, priority_levels=levels, default_priority=default, priority_policies=tuple(policies)
    )


def _queue_policy(
    base: QueuePolicy, given: ModelQueuePolicy, source: str, field: str
) -> QueuePolicy:
    refuse_other(given, source, f"dynamic_batching.{field}.", _QUEUE)
    return QueuePolicy(
        max_queue_size=given.max_queue_size or base.max_queue_size,
        timeout_us=given.default_timeout_microseconds or base.timeout_us,
        timeout_action="DELAY" if given.timeout_action else base.timeout_action,
        allow_timeout_override=given.allow_timeout_override or base.allow_timeout_override,
    )


def _check_ordering(batch: BatchPolicy, source: str) -> None:
    """What would have the order changed cannot go with keeping it."""
    if not batch.preserve_ordering:
        return
    where = f"{source}: dynamic_batching.preserve_ordering"
    if batch.priority_levels > 1:
        raise ConfigError(f"{where} and priority_levels {batch.priority_levels} exclude each other")
    policies = [batch.queue_policy(0), *(queue for _, queue in batch.priority_policies)]
    if any(queue.timeout_action == "DELAY" for queue in policies):
        raise ConfigError(f"{where} and timeout_action DELAY exclude each other")


def slots(spec: ModelSpec, groups: Iterable[ModelInstanceGroup], source: str) -> int:
    found = 0
    for group in groups:
        refuse_other(group, source, "instance_group.", _GROUP)
        kind = ModelInstanceGroup.Kind.Name(group.kind)
        on_cpu = spec.engine in CPU_ENGINES and not spec.accelerated
        if kind not in ("KIND_AUTO", "KIND_CPU") and on_cpu:
            raise ConfigError(
                f"{source}: instance_group.kind is {kind}, but {spec.engine} runs on the CPU; "
                "it must be KIND_CPU or KIND_AUTO"
            )
        if group.gpus and on_cpu:
            raise ConfigError(
                f"{source}: instance_group.gpus is {list(group.gpus)}, but {spec.engine} runs on "
                "the CPU"
            )
        if group.count < 0:
            raise ConfigError(f"{source}: instance_group.count is {group.count}, it must be >= 1")
        found += group.count or 1
    return found
