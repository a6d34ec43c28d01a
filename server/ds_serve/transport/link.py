"""Messages of several frames over a Unix stream socket, on the loop that the process has anyway.

On the wire a message is its length, the number of its frames, their lengths, and the frames, each
padded so that it begins at a multiple of 8 bytes: numpy can then read it where it lies. A large
message is received straight into the memory that it will keep.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

Frame = bytes | bytearray | memoryview

ALIGNMENT = 8
LARGE = 64 * 1024
"""Bytes. A larger message gets memory of its own; others are copied out of a shared buffer."""

BUFFER = 4 * LARGE
JOIN_BELOW = 16 * 1024
"""Bytes. Frames below it are joined with their neighbours rather than written one by one."""

_U32 = struct.Struct("<I")


class Link(asyncio.BufferedProtocol):
    """One end of a connection.

    `on_frames` is called with each message's frames, in the loop's thread; `on_drained` once
    after each burst of messages, for work that is cheaper for many than for one; `on_lost` when
    the other end is gone, but not when this end closed.
    """

    def __init__(
        self,
        on_frames: Callable[[Link, list[memoryview]], None],
        on_drained: Callable[[], None] | None = None,
        on_lost: Callable[[Link], None] | None = None,
    ) -> None:
        self.name = ""
        self._on_frames = on_frames
        self._on_drained = on_drained
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray(BUFFER)
        self._view = memoryview(self._buffer)
        self._filled = 0
        self._large: memoryview | None = None
        self._large_filled = 0

    def send(self, frames: Sequence[Frame]) -> bool:
        """Write a message; False where the other end is gone. Frames must not change any more."""
        if self._transport is None or self._transport.is_closing():
            return False
        self._transport.writelines(_wire(frames))
        return True

    def close(self) -> None:
        """Send what is written, then close."""
        self._on_lost = None
        if self._transport is not None:
            self._transport.close()

    # What follows is called by the loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if self._on_lost is not None:
            self._on_lost(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._large is not None:
            return self._large[self._large_filled :]
        return self._view[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        if self._large is None:
            self._filled += nbytes
            delivered = self._take_messages()
        else:
            self._large_filled += nbytes
            delivered = self._large_filled == len(self._large)
            if delivered:
                body, self._large = self._large, None
                self._on_frames(self, _frames(body))
        if delivered and self._on_drained is not None:
            self._on_drained()

    def _take_messages(self) -> bool:
        """Deliver the whole messages in the buffer, and keep the rest of the last one."""
        start, delivered = 0, False
        while self._filled - start >= _U32.size:
            (length,) = _U32.unpack_from(self._buffer, start)
            body, stop = start + _U32.size, start + _U32.size + length
            if stop > self._filled:
                if length > LARGE:
                    self._begin_large(length, body)
                    return delivered
                break
            delivered = True
            self._on_frames(self, _frames(memoryview(bytes(self._view[body:stop]))))
            start = stop
        rest = self._filled - start
        if start:
            self._view[:rest] = bytes(self._view[start : self._filled])
        self._filled = rest
        return delivered

    def _begin_large(self, length: int, body: int) -> None:
        here = self._filled - body
        self._large = memoryview(bytearray(length))
        self._large[:here] = self._view[body : self._filled]
        self._large_filled, self._filled = here, 0


def _wire(frames: Sequence[Frame]) -> list[Frame]:
    """The pieces to write: small neighbours joined, large frames as they are."""
    lengths = [len(frame) for frame in frames]
    table = struct.pack(f"<{1 + len(lengths)}I", len(lengths), *lengths)
    pieces: list[Frame] = []
    small: list[Frame] = [b"", table, _padding(len(table))]
    total = len(table) + len(small[2])
    for frame, length in zip(frames, lengths, strict=True):
        if length >= JOIN_BELOW:
            pieces += [b"".join(small), frame]
            small = []
        else:
            small.append(frame)
        padding = _padding(length)
        small.append(padding)
        total += length + len(padding)
    pieces.append(b"".join(small))
    pieces[0] = _U32.pack(total) + pieces[0]
    return pieces


def _padding(length: int) -> bytes:
    return bytes(-length % ALIGNMENT)


def _frames(body: memoryview) -> list[memoryview]:
    (count,) = _U32.unpack_from(body)
    lengths = struct.unpack_from(f"<{count}I", body, _U32.size)
    start = _aligned(_U32.size * (1 + count))
    frames = []
    for length in lengths:
        frames.append(body[start : start + length])
        start = _aligned(start + length)
    return frames


def _aligned(position: int) -> int:
    return position + -position % ALIGNMENT


async def connect(path: Path, link: Link) -> Link:
    """Connect `link` to the listener at `path`. Raises OSError where nobody listens."""
    loop = asyncio.get_running_loop()
    await loop.create_unix_connection(lambda: link, str(path))
    return link


async def listen(path: Path, make: Callable[[], Link]) -> asyncio.Server:
    """Accept connections at `path`, which must not exist; `make` gives each one its link."""
    loop = asyncio.get_running_loop()
    return await loop.create_unix_server(make, str(path), backlog=1024)


MOST = 16
"""Messages that are handed over together. With more in one turn of the loop, the other side would
have nothing to do until the turn ends, and this side nothing while the other one answers."""


class Outbox:
    """Collects the messages of one turn of the event loop, then hands them over as one.

    MOST of them are handed over at once, and so is what `send` is called for.
    """

    def __init__(self, flush: Callable[[list[object]], None]) -> None:
        self._flush = flush
        self._waiting: list[object] = []
        self._turn = 0  # messages of this turn of the loop
        self._singly = True
        self._loop = asyncio.get_running_loop()

    def put(self, message: object) -> None:
        if not self._turn:
            self._loop.call_soon(self._end_turn)
        self._turn += 1
        self._waiting.append(message)
        if len(self._waiting) >= MOST:
            self.send()

    def hurry(self) -> None:
        """The other side has nothing to do: hand over what waits, now.

        Not while there are several messages a turn, which cost both sides less together.
        """
        if self._singly and self._turn == 1:
            self.send()

    def _end_turn(self) -> None:
        self._singly = self._turn == 1
        self._turn = 0
        self.send()

    def send(self) -> None:
        """Hand over what waits, now."""
        waiting, self._waiting = self._waiting, []
        if waiting:
            self._flush(waiting)
