"""Messages to frames and back. Large tensors travel as frames of their own, not joined first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ds_serve.transport.link import Frame
from ds_serve.transport.messages import (
    Answer,
    FromSupervisor,
    FromWorker,
    Infer,
    Tensor,
    ToSupervisor,
    ToWorker,
)

Message = TypeVar("Message")
Reader = Callable[[Sequence[memoryview]], list[Message]]

INLINE_BELOW = 16 * 1024
"""Bytes. Smaller tensors travel inside the message's first frame."""


def _encode_hook(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"cannot send {type(value).__name__}")


def _decode_hook(kind: type, value: Any) -> Any:
    if kind is Path:
        return Path(value)
    raise NotImplementedError(f"cannot receive {kind.__name__}")


_encode = msgspec.msgpack.Encoder(enc_hook=_encode_hook).encode


def frames_of(messages: Sequence[object]) -> list[Frame]:
    """The frames of one message that holds them all; tensors' memory is referred to, not copied."""
    frames: list[Frame] = [b""]
    for message in messages:
        for tensor in _tensors(message):
            data = tensor.data
            if not isinstance(data, int) and len(data) >= INLINE_BELOW:
                tensor.data = len(frames)
                frames.append(data)
    frames[0] = _encode(messages)
    return frames


def _reader(kind: Any) -> Callable[[Sequence[memoryview]], list[Any]]:
    """A function from frames to the messages in them, each one of the union `kind`."""
    decode = msgspec.msgpack.Decoder(list[kind], dec_hook=_decode_hook).decode

    def read(frames: Sequence[memoryview]) -> list[Any]:
        messages: list[Any] = decode(frames[0])
        if len(frames) > 1:
            for message in messages:
                for tensor in _tensors(message):
                    if isinstance(tensor.data, int) and tensor.data >= 0:
                        tensor.data = frames[tensor.data]
        return messages

    return read


def _tensors(message: object) -> Iterable[Tensor]:
    if isinstance(message, Infer):
        return message.inputs
    if isinstance(message, Answer):
        return message.outputs
    return ()


read_to_worker: Reader[ToWorker] = _reader(ToWorker)
read_from_worker: Reader[FromWorker] = _reader(FromWorker)
read_to_supervisor: Reader[ToSupervisor] = _reader(ToSupervisor)
read_from_supervisor: Reader[FromSupervisor] = _reader(FromSupervisor)
