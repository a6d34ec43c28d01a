"""A ZeroMQ socket on an asyncio loop, without a future per message.

ZeroMQ's file descriptor is edge-triggered: it signals that *something* changed, once. So after
every wake-up, and after every send (which may swallow the signal), the socket is read until it
is empty.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import zmq

Frame = bytes | bytearray | memoryview
OnFrames = Callable[[list[zmq.Frame]], None]

COPY_BELOW = 64 * 1024
"""Bytes. Larger frames are handed to ZeroMQ without a copy; below, the copy is cheaper."""

READ_AT_MOST = 64
"""Messages read in one go before other callbacks of the loop get their turn."""


class Link:
    """One socket. `on_frames` is called with each message's frames, in the loop's thread.

    `on_drained` is called once after each burst of messages: work that is cheaper for many
    messages than for one belongs there.
    """

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        on_frames: OnFrames,
        on_drained: Callable[[], None] | None = None,
    ) -> None:
        self._socket = socket
        self._on_frames = on_frames
        self._on_drained = on_drained
        self._loop = asyncio.get_running_loop()
        self._fd = int(socket.get(zmq.FD))
        self._again: asyncio.Handle | None = None
        self._loop.add_reader(self._fd, self._read)
        self._read_soon()

    def send(self, frames: Sequence[Frame]) -> bool:
        """Hand a message to ZeroMQ; False where the peer is gone or its buffer is full."""
        last = len(frames) - 1
        try:
            for index, frame in enumerate(frames):
                flags = zmq.NOBLOCK | (zmq.SNDMORE if index < last else 0)
                self._socket.send(frame, flags, copy=len(frame) < COPY_BELOW)
        except zmq.ZMQError:
            return False
        if int(self._socket.get(zmq.EVENTS)) & zmq.POLLIN:
            self._read_soon()
        return True

    def close(self) -> None:
        """Stop reading and drop what was not sent."""
        if self._socket.closed:
            return
        if self._again is not None:
            self._again.cancel()
        self._loop.remove_reader(self._fd)
        self._socket.close(linger=0)

    def _read_soon(self) -> None:
        if self._again is None:
            self._again = self._loop.call_soon(self._read)

    def _read(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None
        for _ in range(READ_AT_MOST):
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.ZMQError:
                break
            self._on_frames(frames)
            if self._socket.closed:
                return
        else:
            self._read_soon()
        if self._on_drained is not None:
            self._on_drained()


class Outbox:
    """Collects the messages of one turn of the event loop, then hands them over as one."""

    def __init__(self, flush: Callable[[list[object]], None]) -> None:
        self._flush = flush
        self._waiting: list[object] = []
        self._loop = asyncio.get_running_loop()

    def put(self, message: object) -> None:
        if not self._waiting:
            self._loop.call_soon(self._hand_over)
        self._waiting.append(message)

    def _hand_over(self) -> None:
        waiting, self._waiting = self._waiting, []
        self._flush(waiting)


def router(context: zmq.Context[zmq.Socket[bytes]], address: str) -> zmq.Socket[bytes]:
    """A bound socket that knows its peers by name and reports sends to unknown ones."""
    socket: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
    socket.set(zmq.SNDHWM, 0)
    socket.set(zmq.RCVHWM, 0)
    socket.set(zmq.ROUTER_MANDATORY, 1)
    socket.set(zmq.ROUTER_HANDOVER, 1)
    socket.bind(address)
    return socket


def dealer(
    context: zmq.Context[zmq.Socket[bytes]], address: str, identity: str
) -> zmq.Socket[bytes]:
    """A socket connected to a router, known there as `identity`."""
    socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
    socket.set(zmq.SNDHWM, 0)
    socket.set(zmq.RCVHWM, 0)
    socket.set(zmq.IDENTITY, identity.encode())
    socket.set(zmq.LINGER, 0)
    socket.connect(address)
    return socket
