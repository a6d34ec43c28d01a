"""gRPC's messages in the body of an HTTP/2 request, and what its headers say."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterable
from urllib.parse import quote

from grpc import StatusCode

from ds_engines.errors import InvalidRequest, TooLarge, Unsupported

PREFIX = struct.Struct(">BI")
"""Before each message: whether it is compressed, and its length in bytes."""

GZIP = 31
"""zlib's window bits for gzip's format."""

UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
TIMEOUT = re.compile(rb"(\d{1,8})([HMSmun])")

Headers = Iterable[tuple[bytes, bytes]]


class Reader:
    """The messages in a stream of bytes that comes in pieces.

    `limit` is the most bytes that a message may have, uncompressed too; `encoding` is the
    grpc-encoding of the compressed ones.
    """

    def __init__(self, limit: int, encoding: bytes | None) -> None:
        self._limit = limit
        self._encoding = encoding
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that are whole now. Raises TooLarge, InvalidRequest, Unsupported."""
        if self._rest:
            self._rest += data
            data = bytes(self._rest) if self._whole() else b""
            if not data:
                return []
            self._rest.clear()
        messages, start = [], 0
        while len(data) - start >= PREFIX.size:
            compressed, length = PREFIX.unpack_from(data, start)
            self._check(length)
            body = start + PREFIX.size
            if body + length > len(data):
                break
            message = data[body : body + length]
            messages.append(self._decompress(message) if compressed else message)
            start = body + length
        self._rest += data[start:]
        return messages

    def end(self) -> InvalidRequest | None:
        """Nothing follows: what is wrong with that, where a message has begun."""
        if not self._rest:
            return None
        return InvalidRequest(f"the stream ends within a message, {len(self._rest)} bytes in")

    def _whole(self) -> bool:
        """Whether the first message is; a large one is not looked at again for each piece."""
        if len(self._rest) < PREFIX.size:
            return False
        length: int = PREFIX.unpack_from(self._rest)[1]
        self._check(length)
        return len(self._rest) >= PREFIX.size + length

    def _check(self, length: int) -> None:
        if length > self._limit:
            raise TooLarge(
                f"a message of the stream has {length:,} bytes; the limit is {self._limit:,} "
                "(--max-request-bytes)"
            )

    def _decompress(self, message: bytes) -> bytes:
        if self._encoding != b"gzip":
            named = (self._encoding or b"nothing").decode("latin-1")
            raise Unsupported(f"grpc-encoding is {named}; compressed messages must be gzip")
        unpacking = zlib.decompressobj(GZIP)
        try:
            unpacked = unpacking.decompress(message, self._limit + 1)
        except zlib.error as error:
            raise InvalidRequest(f"a message of the stream is no gzip: {error}") from None
        self._check(len(unpacked))
        if not unpacking.eof:
            raise InvalidRequest("a message of the stream is no gzip: its end is missing")
        return unpacked


def frame(message: bytes) -> bytes:
    return PREFIX.pack(0, len(message)) + message


def seconds(headers: Headers) -> float | None:
    """How long the caller waits at most. Raises InvalidRequest."""
    given = find(headers, b"grpc-timeout")
    if given is None:
        return None
    found = TIMEOUT.fullmatch(given)
    if found is None:
        raise InvalidRequest(
            f"grpc-timeout is {given.decode('latin-1')!r}; it must be digits and one of H M S m u n"
        )
    return int(found[1]) * UNITS[found[2].decode()]


def find(headers: Headers, name: bytes) -> bytes | None:
    return next((value for key, value in headers if key == name), None)


def trailers(
    code: StatusCode, message: str = "", more: Iterable[tuple[str, str | bytes]] = ()
) -> list[tuple[bytes, bytes]]:
    made = [(b"grpc-status", b"%d" % code.value[0])]
    if message:
        made.append((b"grpc-message", quote(message, safe=" !\"#$&'()*+,/:;<=>?@[]^`{|}").encode()))
    for name, value in more:
        made.append((name.encode(), value if isinstance(value, bytes) else value.encode()))
    return made
