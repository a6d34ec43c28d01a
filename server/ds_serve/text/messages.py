"""What the HTTP half and the engine loop say to each other, as msgpack over a ZeroMQ pair."""

from __future__ import annotations

import msgspec

from ds_engines.openvino_genai import Delta, Load
from ds_engines.openvino_sampling import Sampling, TextConfig


class Add(msgspec.Struct, array_like=True, tag=True):
    """Generate an answer to a prompt of token ids."""

    id: int
    prompt: list[int]
    sampling: Sampling


class Cancel(msgspec.Struct, array_like=True, tag=True):
    """Stop generating for these requests; nothing is answered."""

    ids: list[int]


class Loaded(msgspec.Struct, array_like=True, tag=True):
    """The model has generated a token; times in seconds."""

    max_seq_len: int
    max_seqs: int
    blocks: int
    cache_bytes: int
    load_seconds: float
    first_token_seconds: float


class Failed(msgspec.Struct, array_like=True, tag=True):
    """The loop ends: a kind and a message for `errors.from_kind`."""

    kind: str
    message: str


class Step(msgspec.Struct, array_like=True, tag=True):
    """All that one step produced, and how full the engine is now."""

    deltas: list[Delta]
    load: Load


class LogSettings(msgspec.Struct, frozen=True):
    """How a process logs; `process` is the name that its lines carry."""

    log_format: str
    level: str
    process: str


class LoopSettings(msgspec.Struct, frozen=True):
    """What the loop process is started with, as JSON on its command line."""

    endpoint: str
    parent_pid: int
    logging: LogSettings
    engine: TextConfig


ToLoop = Add | Cancel
FromLoop = Loaded | Failed | Step

encode = msgspec.msgpack.Encoder().encode
decode_to_loop = msgspec.msgpack.Decoder(ToLoop).decode
decode_from_loop = msgspec.msgpack.Decoder(FromLoop).decode
