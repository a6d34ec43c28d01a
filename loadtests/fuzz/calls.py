"""Fuzzing over gRPC: messages to every method, and connections that speak no gRPC."""

from __future__ import annotations

import contextlib
import random
import socket
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from threading import Event
from typing import Any

import grpc
import numpy as np
from google.protobuf.message import Message
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import triton_to_np_dtype

from loadtests.fuzz.messages import METHODS, Maker
from loadtests.fuzz.outcome import Outcome

CONNECTIONS = 4
ANSWER_SECONDS = 60.0
SERVICE = next(iter(METHODS)).rpartition("/")[0]
STREAMS = (
    f"{SERVICE}/ModelStreamInfer",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
)
PATHS = (*METHODS, STREAMS[1], "/grpc.health.v1.Health/Check", f"{SERVICE}/NoSuchMethod")

FAILURES = {
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.DATA_LOSS,
    grpc.StatusCode.CANCELLED,
}
"""Codes by which a server says that it had not expected this."""

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
FINDINGS = 20
RAW_SHARE = 0.02
SILENCE = 0.1
"""Seconds after which a connection that speaks no gRPC is left."""


def fuzz(address: str, seconds: float, seed: int, models: Sequence[str], over: Event) -> Outcome:
    """Send for so long, over a few connections at once."""
    right = [message for model in models if (message := right_request(address, model))]
    end = time.monotonic() + seconds
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        makers = [Maker(random.Random(seed + i), models, right) for i in range(CONNECTIONS)]
        parts = list(pool.map(lambda maker: _caller(address, maker, end, over), makers))
    return reduce(_joined, parts)


def _joined(one: Outcome, other: Outcome) -> Outcome:
    return Outcome(one.answers + other.answers, (one.findings + other.findings)[:FINDINGS])


def right_request(address: str, model: str) -> Message | None:
    """One row of zeros for each input; None where that gets no answer, as from a chat model."""
    made = pb.ModelInferRequest(model_name=model, id="fuzz")
    about = metadata(address, model)
    for tensor in about.inputs if about else ():
        if tensor.datatype != "BYTES":
            shape = [max(size, 1) for size in tensor.shape]
            made.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=shape)
            zeros = np.zeros(shape, triton_to_np_dtype(tensor.datatype))
            made.raw_input_contents.append(zeros.tobytes())
    return made if _answer(address, "ModelInfer", made) is not None else None


def metadata(address: str, model: str) -> Any:
    """What the server says of a model; None where it does not."""
    answer = _answer(address, "ModelMetadata", pb.ModelMetadataRequest(name=model))
    return None if answer is None else pb.ModelMetadataResponse.FromString(answer)


def _answer(address: str, method: str, message: Message) -> bytes | None:
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(f"{SERVICE}/{method}")
        try:
            answer: bytes = call(message.SerializeToString(), timeout=ANSWER_SECONDS)
        except grpc.RpcError:
            return None
    return answer


def _caller(address: str, maker: Maker, end: float, over: Event) -> Outcome:
    outcome = Outcome()
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(address, options) as channel:
        while time.monotonic() < end and not over.is_set():
            if maker.random.random() < RAW_SHARE:
                _speak_nonsense(address, maker)
                outcome.answers["no gRPC"] += 1
            else:
                _call(channel, maker, outcome)
    return outcome


def _call(channel: grpc.Channel, maker: Maker, outcome: Outcome) -> None:
    path = maker.random.choice(PATHS)
    count = maker.random.randint(0, 4) if path in STREAMS else 1
    sent = [maker.bytes_for(path) for _ in range(count)]
    try:
        if path in STREAMS:
            for _ in channel.stream_stream(path)(iter(sent), timeout=ANSWER_SECONDS):
                pass
        else:
            channel.unary_unary(path)(sent[0], timeout=ANSWER_SECONDS)
        outcome.answers["OK"] += 1
    except grpc.RpcError as error:
        outcome.answers[error.code().name] += 1
        if error.code() in FAILURES and len(outcome.findings) < FINDINGS:
            messages = " ".join(message.hex() or "(empty)" for message in sent)
            said = f"{path}: {error.code().name}: {error.details()}"
            outcome.findings.append(f"{said}\n  sent: {messages}")


def _speak_nonsense(address: str, maker: Maker) -> None:
    """Bytes, or frames of HTTP/2 that make no sense; the server may close or wait."""
    host, _, port = address.rpartition(":")
    start = maker.random.choice((b"", b"GET / HTTP/1.1\r\n\r\n", PREFACE, PREFACE + SETTINGS))
    frames = b"".join(_frame(maker.random) for _ in range(maker.random.randint(0, 5)))
    with (
        contextlib.suppress(ConnectionError, TimeoutError),
        socket.create_connection((host, int(port)), timeout=SILENCE) as connection,
    ):
        connection.sendall(start + (frames or maker.random.randbytes(200)))
        while connection.recv(65536):
            pass


def _frame(source: random.Random) -> bytes:
    """Of any type, with any flags, for any of the first streams; now and then of a wrong length."""
    payload = source.randbytes(source.choice((0, 1, 4, 5, 8, 100)))
    length = len(payload) if source.random() < 0.8 else source.randrange(2**24)
    kind, flags, stream = source.randrange(12), source.randrange(256), source.randrange(8)
    head = length.to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big")
    return head + payload
