"""The bodies of requests, unpacked and within the server's limits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from ds_engines.errors import Cancelled, InvalidRequest
from ds_serve.gateway.budget import Budget
from ds_serve.gateway.http import compression
from ds_serve.gateway.http.answer import Receive


async def read_body(headers: dict[bytes, bytes], receive: Receive, budget: Budget) -> bytes:
    """The whole body, taken from the budget as it arrives: its length is to be given back.

    Raises TooLarge before reading what is announced as too large, Overloaded where the budget
    has no room, Unsupported for an unknown coding; nothing is taken then.
    """
    check_announced(headers, budget)
    chunks: list[bytes] = []
    size = 0
    try:
        async for chunk in pieces(headers, receive):
            budget.check(size + len(chunk))
            budget.take(len(chunk))
            size += len(chunk)
            chunks.append(chunk)
    except BaseException:
        budget.give(size)
        raise
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def pieces(headers: dict[bytes, bytes], receive: Receive) -> AsyncIterator[bytes]:
    """The body as it comes in, unpacked. Raises Cancelled, InvalidRequest, Unsupported."""
    unpacker = compression.unpacker(headers)
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Cancelled("the client left before its request was complete")
        chunk, more = message.get("body", b""), message.get("more_body", False)
        if unpacker is None:
            yield chunk
            continue
        for piece in unpacker.feed(chunk):
            yield piece
            await asyncio.sleep(0)  # others have their turn before the next
    if unpacker is not None:
        unpacker.end()


def check_announced(headers: dict[bytes, bytes], budget: Budget) -> None:
    """Raises InvalidRequest, TooLarge or Unsupported for what the headers say of the body."""
    length = headers.get(b"content-length")
    if length is not None:
        if not length.isdigit():
            raise InvalidRequest(f"Content-Length {length.decode(errors='replace')!r}")
        budget.check(int(length))
    if compression.CONTENT_ENCODING in headers:
        compression.unpacker(headers)
