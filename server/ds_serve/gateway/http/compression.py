"""Bodies in gzip or deflate: requests unpacked piece by piece, answers packed where it pays."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping

from ds_engines.errors import InvalidRequest, Unsupported
from ds_serve.gateway.http.answer import Answer

CONTENT_ENCODING = b"content-encoding"
ACCEPT_ENCODING = b"accept-encoding"

WINDOWS = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}
"""zlib's window bits for each coding. HTTP's deflate is zlib's format."""

PIECE = 1024 * 1024
"""Bytes that are unpacked at once: a small body may become a very large one."""

SMALLEST = 1024
"""Bytes. A shorter answer is not packed."""

SAMPLE = 16 * 1024
"""Bytes. A longer answer is packed only where this much of it loses a fifth of its length."""

ASIDE = 64 * 1024
"""Bytes. A longer answer is packed in another thread."""

_ACCEPTED = re.compile(rb"(gzip|deflate)(?:\s*;\s*q=([\d.]+))?", re.IGNORECASE)


class Unpacker:
    """A body that the client has packed, as it comes in."""

    def __init__(self, coding: bytes) -> None:
        self._coding = coding.decode()
        self._unpacking = zlib.decompressobj(WINDOWS[coding])

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What is in this piece, no more than PIECE bytes at a time. Raises InvalidRequest."""
        while data:
            if self._unpacking.eof:
                raise InvalidRequest(f"bytes follow the end of the body's {self._coding}")
            try:
                unpacked = self._unpacking.decompress(data, PIECE)
            except zlib.error as error:
                raise InvalidRequest(f"the body is no {self._coding}: {error}") from None
            data = self._unpacking.unconsumed_tail or self._unpacking.unused_data
            if unpacked:
                yield unpacked

    def end(self) -> None:
        """Nothing follows. Raises InvalidRequest where something should."""
        if not self._unpacking.eof:
            raise InvalidRequest(f"the body is no {self._coding}: its end is missing")


def unpacker(headers: Mapping[bytes, bytes]) -> Unpacker | None:
    """None for a body that is not packed. Raises Unsupported."""
    coding = headers.get(CONTENT_ENCODING, b"identity").strip().lower()
    if coding in (b"identity", b""):
        return None
    if coding not in WINDOWS:
        raise Unsupported(
            f"Content-Encoding {coding.decode(errors='replace')!r} is not supported: send the "
            "body as it is, or as gzip or deflate"
        )
    return Unpacker(coding)


def accepted(headers: Mapping[bytes, bytes]) -> bytes | None:
    """The coding that the client wants the most; None for none."""
    best, most = None, 0.0
    for coding, quality in _ACCEPTED.findall(headers.get(ACCEPT_ENCODING, b"")):
        try:
            weight = float(quality or 1)
        except ValueError:
            continue
        if weight > most:
            best, most = coding.lower(), weight
    return best


def worth_it(answer: Answer) -> bool:
    """Whether the answer becomes much shorter, by its beginning."""
    sample = bytes(answer.chunks[0][:SAMPLE])
    if len(sample) < SMALLEST:
        return False
    return len(sample) < SAMPLE or len(zlib.compress(sample, 1)) < 0.8 * SAMPLE


def packed(answer: Answer, coding: bytes) -> Answer:
    """The same answer in that coding."""
    packing = zlib.compressobj(1, wbits=WINDOWS[coding])
    chunks = [packing.compress(chunk) for chunk in answer.chunks]
    chunks.append(packing.flush())
    headers = [*answer.headers, (CONTENT_ENCODING, coding), (b"vary", b"accept-encoding")]
    return Answer(answer.status, [b"".join(chunks)], headers)
