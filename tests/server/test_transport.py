"""Links over real Unix sockets, and the messages that travel on them."""

from __future__ import annotations

import asyncio
import copy
import gc
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_engines.errors import Overloaded, RateLimited, from_kind
from ds_engines.spec import BatchPolicy, ModelSpec, TensorSpec
from ds_serve.transport.codec import (
    INLINE_BELOW,
    frames_of,
    read_from_supervisor,
    read_from_worker,
    read_to_supervisor,
    read_to_worker,
)
from ds_serve.transport.link import ALIGNMENT, LARGE, Link, Outbox, connect, listen
from ds_serve.transport.messages import (
    Answer,
    BatchStatistics,
    Beat,
    Cancel,
    Duration,
    Fault,
    Hello,
    Infer,
    Listening,
    Loaded,
    ModelState,
    Registry,
    Statistics,
    StatisticsQuery,
    Stop,
    Tensor,
)

# Messages.

ids = st.integers(0, 2**63 - 1)
times = st.floats(allow_nan=False)
names = st.text(max_size=8)
sizes = st.sampled_from([0, 1, 5, 1000, INLINE_BELOW - 1, INLINE_BELOW, INLINE_BELOW + 1, 100_000])
datas = st.tuples(sizes, st.integers(0, 255)).map(lambda one: memoryview(bytes([one[1]]) * one[0]))
shapes = st.lists(st.integers(0, 2**63 - 1), max_size=3).map(tuple)
tensors = st.lists(st.builds(Tensor, names, names, shapes, datas), max_size=3)
faults = st.builds(Fault, names, names, st.none() | times)
durations = st.builds(Duration, ids, ids)
batches = st.builds(BatchStatistics, durations, durations, durations)

to_worker = st.one_of(
    st.builds(Infer, ids, st.integers(1, 99), times, times, tensors, st.lists(names).map(tuple)),
    st.builds(Cancel, ids),
    st.builds(StatisticsQuery, ids),
)
from_worker = st.one_of(
    st.builds(Answer, ids, tensors, st.none() | faults),
    st.builds(
        Statistics, ids, ids, ids, ids, *[durations] * 6, st.dictionaries(ids, batches, max_size=2)
    ),
)


def received(frames: list[Any]) -> list[memoryview]:
    return [memoryview(bytes(frame)) for frame in frames]


@settings(deadline=None)
@given(st.lists(to_worker, max_size=4))
def test_messages_to_a_worker_arrive_as_they_were_sent(messages: list[Any]) -> None:
    expected = copy.deepcopy([_plain(message) for message in messages])
    found = read_to_worker(received(frames_of(messages)))
    assert [_plain(message) for message in found] == expected


@settings(deadline=None)
@given(st.lists(from_worker, max_size=4))
def test_messages_from_a_worker_arrive_as_they_were_sent(messages: list[Any]) -> None:
    expected = copy.deepcopy([_plain(message) for message in messages])
    found = read_from_worker(received(frames_of(messages)))
    assert [_plain(message) for message in found] == expected


def _plain(message: Any) -> Any:
    """The message's type and values; a tensor's memory as bytes."""
    if isinstance(message, memoryview):
        return bytes(message)
    if isinstance(message, msgspec.Struct):
        return type(message).__name__, [_plain(value) for value in msgspec.structs.astuple(message)]
    if isinstance(message, list | tuple):
        return [_plain(value) for value in message]
    return message


def test_what_the_supervisor_and_its_children_say_arrives() -> None:
    spec = ModelSpec(
        "m",
        "onnxruntime",
        Path("/models/m.onnx"),
        inputs=(TensorSpec("x", "FP32", (-1, 4), 0, True),),
        batch=BatchPolicy(8, 100, (2, 4), 9, 7),
        parameters={"a": "b"},
    )
    up = [Hello("m#1"), Listening(), Loaded(spec, "/run/m.sock"), Beat(0.25)]
    assert read_to_supervisor(received(frames_of(up))) == up
    states = [ModelState("m", "ready", "", "/run/m.sock", 3, spec), ModelState("n", "loading")]
    down = [Registry(states), Stop(1.5)]
    assert read_from_supervisor(received(frames_of(down))) == down


def test_large_tensors_are_referred_to_and_not_copied() -> None:
    data = bytearray(INLINE_BELOW)
    sent = Infer(1, 1, 0.0, 0.0, [Tensor("x", "UINT8", (INLINE_BELOW,), memoryview(data))], ())
    frames = frames_of([sent])
    data[0] = 7
    assert bytes(frames[1])[0] == 7


@pytest.mark.parametrize("error", [Overloaded("full"), RateLimited("slow", retry_after=3.5)])
def test_an_error_is_itself_again_on_the_other_side(error: Overloaded) -> None:
    (answer,) = read_from_worker(received(frames_of([Answer(1, fault=Fault.of(error))])))
    rebuilt = answer.fault.error()
    assert (type(rebuilt), str(rebuilt)) == (type(error), str(error))
    assert rebuilt.retry_after == error.retry_after


def test_an_error_of_an_unknown_kind_is_still_an_error() -> None:
    assert str(from_kind("NotOfThisVersion", "said")) == "said"


# Links.


class End:
    """A link that keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[list[bytes]] = []
        self.bursts = self.lost = 0
        self.aligned = True
        self.link = Link(self._on_frames, self._on_drained, self._on_lost)
        self._changed = asyncio.Event()

    def _on_frames(self, _: Link, frames: list[memoryview]) -> None:
        for frame in frames:
            if len(frame):
                start = np.frombuffer(frame, np.uint8).__array_interface__["data"][0]
                self.aligned &= start % ALIGNMENT == 0
        self.heard.append([bytes(frame) for frame in frames])

    def _on_drained(self) -> None:
        self.bursts += 1
        self._changed.set()

    def _on_lost(self, _: Link) -> None:
        self.lost += 1
        self._changed.set()

    async def until_heard(self, count: int) -> None:
        async with asyncio.timeout(30):
            while len(self.heard) < count:
                self._changed.clear()
                await self._changed.wait()

    async def until_lost(self) -> None:
        async with asyncio.timeout(30):
            while not self.lost:
                self._changed.clear()
                await self._changed.wait()


@pytest.fixture
def place() -> Iterator[Path]:
    """A path short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="link-") as folder:
        yield Path(folder, "s")


@asynccontextmanager
async def pair(place: Path) -> AsyncIterator[tuple[End, End]]:
    """Both ends of one connection."""
    accepted: list[End] = []

    def accept() -> Link:
        accepted.append(End())
        return accepted[-1].link

    server = await listen(place, accept)
    near = End()
    await connect(place, near.link)
    async with asyncio.timeout(30):
        while not accepted:
            await asyncio.sleep(0.001)
    yield near, accepted[0]
    near.link.close()
    accepted[0].link.close()
    server.close()
    await asyncio.sleep(0)


def noise(size: int) -> bytes:
    return os.urandom(size)


MESSAGES = [
    [b""],
    [b"a"],
    [b"", b"", b"x"],
    [noise(7), noise(8), noise(9)],
    [noise(LARGE - 8), noise(3)],
    [noise(LARGE), noise(LARGE + 1), b"end"],
    [noise(3 * LARGE)],
    [noise(10), noise(5_000_000), noise(1), noise(20_000), noise(17_000)],
    [b"small again"],
    [noise(1) for _ in range(300)],
]


async def test_messages_of_all_sizes_arrive_whole_and_in_order(place: Path) -> None:
    async with pair(place) as (near, far):
        sent = MESSAGES + MESSAGES[::-1] + [[noise(30)]] * 2000
        for frames in sent:
            assert near.link.send(frames)
        await far.until_heard(len(sent))
        assert far.heard == sent
        assert far.aligned


async def test_both_ends_talk_at_once(place: Path) -> None:
    async with pair(place) as (near, far):
        for _ in range(20):
            for frames in MESSAGES:
                near.link.send(frames)
                far.link.send(frames[::-1])
        await far.until_heard(20 * len(MESSAGES))
        await near.until_heard(20 * len(MESSAGES))
        assert far.heard == MESSAGES * 20
        assert near.heard == [frames[::-1] for frames in MESSAGES] * 20


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from([0, 1, 7, 8, 500, 17_000, 66_000]), min_size=1, max_size=4),
        min_size=1,
        max_size=6,
    ),
    st.lists(st.sampled_from([1, 2, 3, 5, 64, 4000, 70_000, 300_000]), min_size=1, max_size=5),
)
def test_it_does_not_matter_how_the_bytes_are_cut(
    messages: list[list[int]], cuts: list[int]
) -> None:
    """What a socket delivers ends anywhere; here it ends where the test says."""
    sent = [[noise(size) for size in sizes] for sizes in messages]
    stream = b"".join(_written(frames) for frames in sent)
    heard: list[list[bytes]] = []
    link = Link(lambda _, frames: heard.append([bytes(frame) for frame in frames]))
    cuts = [*cuts, 70_000]  # or a large message takes one byte at a time for ever
    position, turn = 0, 0
    while position < len(stream):
        room = link.get_buffer(-1)
        piece = stream[position : position + min(cuts[turn % len(cuts)], len(room))]
        assert piece, "the link offers no room"
        room[: len(piece)] = piece
        link.buffer_updated(len(piece))
        position += len(piece)
        turn += 1
    assert heard == sent


class _Transport:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.written = b""

    def is_closing(self) -> bool:
        return False

    def writelines(self, pieces: list[bytes]) -> None:
        self.written += b"".join(pieces)


def _written(frames: list[bytes]) -> bytes:
    transport: Any = _Transport()
    link = Link(lambda _, frames: None)
    link.connection_made(transport)
    assert link.send(frames)
    return transport.written


async def test_a_burst_is_drained_once(place: Path) -> None:
    async with pair(place) as (near, far):
        for number in range(50):
            near.link.send([b"%d" % number])
        await far.until_heard(50)
        assert far.heard == [[b"%d" % number] for number in range(50)]
        assert far.bursts < 50


async def test_the_loss_of_the_other_end_is_told_once(place: Path) -> None:
    async with pair(place) as (near, far):
        far.link.send([b"last words"])
        far.link.close()
        await near.until_lost()
        assert near.heard == [[b"last words"]]
        assert near.link.send([b"anybody?"]) is False
        assert (near.lost, far.lost) == (1, 0)


async def test_nothing_is_sent_before_there_is_a_connection() -> None:
    assert End().link.send([b"too early"]) is False


async def test_connecting_to_nobody_fails(place: Path) -> None:
    with pytest.raises(OSError, match=r"No such file"):
        await connect(place, End().link)


async def test_a_message_that_was_read_may_outlive_the_next(place: Path) -> None:
    """What was handed out is not overwritten by what comes after it."""
    kept: list[memoryview] = []
    accepted: list[Link] = []

    def accept() -> Link:
        accepted.append(Link(lambda _, frames: kept.extend(frames)))
        return accepted[-1]

    server = await listen(place, accept)
    near = End()
    await connect(place, near.link)
    pieces = [noise(size) for size in (10, 9000, 70_000, 12, 300_000, 5)]
    for piece in pieces:
        near.link.send([piece])
        await asyncio.sleep(0.002)
    async with asyncio.timeout(30):
        while len(kept) < len(pieces):
            await asyncio.sleep(0.002)
    gc.collect()
    assert [bytes(frame) for frame in kept] == pieces
    for link in (near.link, *accepted):
        link.close()
    server.close()
    await asyncio.sleep(0)


async def test_the_outbox_hands_over_one_turns_messages_together() -> None:
    handed: list[list[object]] = []
    outbox = Outbox(handed.append)
    outbox.put(1)
    outbox.put(2)
    assert handed == []
    await asyncio.sleep(0)
    outbox.put(3)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert handed == [[1, 2], [3]]


async def test_the_outbox_hands_over_sixteen_at_once_and_what_it_is_told_to() -> None:
    handed: list[list[object]] = []
    outbox = Outbox(handed.append)
    for number in range(35):
        outbox.put(number)
    assert [len(each) for each in handed] == [16, 16]
    outbox.send()
    outbox.put(35)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [len(each) for each in handed] == [16, 16, 3, 1]
    assert [number for each in handed for number in each] == list(range(36))


async def test_the_outbox_hurries_while_messages_come_singly() -> None:
    handed: list[list[object]] = []
    outbox = Outbox(handed.append)

    async def turn(*numbers: int) -> list[list[object]]:
        del handed[:]
        for number in numbers:
            outbox.put(number)
            outbox.hurry()
        now = list(handed)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return now

    assert await turn(1) == [[1]]
    assert await turn(2) == [[2]]
    assert await turn(3, 4) == [[3]]
    assert await turn(5, 6) == []
    assert handed == [[5, 6]]
    assert await turn(7) == []
    assert await turn(8) == [[8]]
