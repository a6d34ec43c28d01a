"""What a configuration sets and ds-serve does not honour is refused by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from google.protobuf.message import Message

from ds_engines.errors import ConfigError

Honoured = Mapping[str, Callable[[Any], bool]]
"""Field to whether its value is honoured."""


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


def falsy(value: Any) -> bool:
    """Nothing set that would change anything, such as `response_cache { enable: false }`."""
    return not value.ByteSize() if isinstance(value, Message) else not value


def _any(_: object) -> bool:
    return True
