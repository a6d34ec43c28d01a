"""What the process that talks to Ray tells the supervisor."""

from __future__ import annotations

import msgspec


class Told(msgspec.Struct, frozen=True):
    """What is told of a model, one line each time: where its replicas answer, and what Ray says
    where they do not. `failed`: Ray has given up.
    """

    name: str
    addresses: tuple[str, ...]
    reason: str = ""
    failed: bool = False


decode = msgspec.json.Decoder(Told).decode


def encode(told: Told) -> bytes:
    return msgspec.json.encode(told) + b"\n"
