"""Packed bodies: what was packed is read, in pieces, and what is no such thing is named."""

from __future__ import annotations

import gzip
import random
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_engines.errors import InvalidRequest, TooLarge, Unsupported
from ds_serve.gateway.budget import Budget
from ds_serve.gateway.http import compression
from ds_serve.gateway.http.answer import Answer
from ds_serve.gateway.http.body import read_body

LIMIT = 3_000_000
PACK = {"gzip": gzip.compress, "deflate": zlib.compress, "X-GZIP": gzip.compress}
UNPACK = {b"gzip": gzip.decompress, b"deflate": zlib.decompress}

either = pytest.mark.parametrize("coding", PACK)


async def received(coding: str, body: bytes, step: int = 7, budget: Budget | None = None) -> bytes:
    """The body as it is read, when it comes in pieces of `step` bytes."""
    pieces = [body[at : at + step] for at in range(0, len(body), step)] or [b""]

    async def receive() -> Any:
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    headers = {b"content-encoding": coding.encode()}
    return await read_body(headers, receive, budget or Budget(LIMIT, LIMIT))


@either
async def test_a_packed_body_is_read(coding: str) -> None:
    body = b"a body " * 1000
    assert await received(coding, PACK[coding](body)) == body
    assert await received(coding, PACK[coding](b"")) == b""


async def test_a_body_of_several_pieces_of_gzip_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="bytes follow the end"):
        await received("gzip", gzip.compress(b"a") + gzip.compress(b"b"))


@either
async def test_what_unpacks_beyond_the_limit_is_refused_early(coding: str) -> None:
    budget = Budget(LIMIT, LIMIT)
    bomb = PACK[coding](bytes(100 * LIMIT))
    assert len(bomb) < LIMIT
    with pytest.raises(TooLarge):
        await received(coding, bomb, len(bomb), budget)
    budget.take(LIMIT)  # nothing is held any more


@either
async def test_what_is_not_packed_is_named(coding: str) -> None:
    with pytest.raises(InvalidRequest, match=f"the body is no {coding.lower()}"):
        await received(coding, b"plain text")
    with pytest.raises(InvalidRequest, match="its end is missing"):
        await received(coding, PACK[coding](b"a body")[:-2])


@pytest.mark.parametrize("coding", ["br", "gzip, deflate", "zstd", "\u00e9"])
async def test_other_codings_are_refused_by_name(coding: str) -> None:
    with pytest.raises(Unsupported, match="send the body as it is"):
        await received(coding, b"x")


async def test_an_unpacked_body_passes() -> None:
    assert await received("identity", b"plain text") == b"plain text"


@given(st.binary(max_size=200))
async def test_arbitrary_bytes_are_refused_or_read(body: bytes) -> None:
    try:
        await received("gzip", body)
    except InvalidRequest:
        return


@pytest.mark.parametrize(
    ("accept", "coding"),
    [
        (b"gzip", b"gzip"),
        (b"deflate", b"deflate"),
        (b"br, GZIP;q=0.5, deflate;q=0.8", b"deflate"),
        (b"gzip, deflate", b"gzip"),
        (b"gzip;q=0", None),
        (b"gzip;q=.", None),
        (b"identity", None),
        (b"", None),
    ],
)
def test_the_coding_that_is_wanted_most(accept: bytes, coding: bytes | None) -> None:
    assert compression.accepted({b"accept-encoding": accept}) == coding


@pytest.mark.parametrize("coding", [b"gzip", b"deflate"])
def test_a_packed_answer_holds_the_same(coding: bytes) -> None:
    answer = Answer(200, [b"a" * 5000, memoryview(b"b" * 5000)], [(b"content-type", b"x")])
    assert compression.worth_it(answer)
    packed = compression.packed(answer, coding)
    assert dict(packed.headers)[b"content-encoding"] == coding
    assert UNPACK[coding](b"".join(packed.chunks)) == b"a" * 5000 + b"b" * 5000


def test_short_answers_and_noise_are_not_worth_it() -> None:
    assert not compression.worth_it(Answer(200, [b"a" * 100], []))
    noise = random.Random(0).randbytes(compression.SAMPLE)
    assert not compression.worth_it(Answer(200, [noise], []))
