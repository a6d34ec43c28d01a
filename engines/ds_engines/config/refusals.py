"""What a configuration sets and ds-serve does not honour is refused by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from google.protobuf.message import Message

from ds_engines.errors import ConfigError
from ds_proto.model_config_pb2 import ModelConfig

Honoured = Mapping[str, Callable[[Any], bool]]
"""Field to whether its value is honoured."""


_HINTS: Honoured = {
    "graph": lambda graph: graph.level >= 0,
    "execution_accelerators": lambda given: all(
        each.name == "openvino" for each in given.cpu_execution_accelerator
    ),
    **dict.fromkeys(
        (
            "priority",
            "cuda",
            "input_pinned_memory",
            "output_pinned_memory",
            "gather_kernel_buffer_threshold",
            "eager_batching",
        ),
        lambda _: True,
    ),
}
"""Of `optimization`: what says how a device or memory is to be used, and changes no answer."""


def honoured(*names: str) -> Honoured:
    """Fields that are, whatever their value."""
    return dict.fromkeys(names, _any)


def refuse_other(message: Message, source: str, path: str, known: Honoured) -> None:
    """Refuse each field that is set, changes something and is not honoured.

    `path` is what precedes the field's name. Raises ConfigError.
    """
    for field, value in message.ListFields():
        chosen = field.containing_oneof is not None
        if known.get(field.name, falsy)(value) and (field.name in known or not chosen):
            continue
        raise ConfigError(f"{source}: field {path + field.name!r} is not supported")


def refuse_optimization(config: ModelConfig, source: str) -> None:
    """Refuse what asks for another way to compute. Raises ConfigError."""
    refuse_other(config.optimization, source, "optimization.", _HINTS)


def falsy(value: Any) -> bool:
    """Nothing set that would change anything, such as `response_cache { enable: false }`."""
    return not value.ByteSize() if isinstance(value, Message) else not value


def _any(_: object) -> bool:
    return True
