"""gRPC's messages in a stream of bytes, however it is cut."""

from __future__ import annotations

import gzip

import pytest
from grpc import StatusCode

from ds_engines.errors import InvalidRequest, TooLarge, Unsupported
from ds_serve.gateway.grpc import framing

MESSAGES = [b"", b"one", b"x" * 1000, b"last"]


def packed(message):
    return framing.PREFIX.pack(1, len(message)) + message


@pytest.mark.parametrize("size", [1, 3, 7, 500, 10_000])
def test_messages_arrive_whole_and_in_order(size):
    data = b"".join(map(framing.frame, MESSAGES))
    reader = framing.Reader(1000, None)
    found = []
    for start in range(0, len(data), size):
        found += reader.feed(data[start : start + size])
    assert found == MESSAGES
    assert reader.end() is None


def test_a_stream_that_ends_within_a_message_is_wrong():
    reader = framing.Reader(1000, None)
    assert reader.feed(framing.frame(b"whole") + framing.frame(b"cut")[:6]) == [b"whole"]
    assert "6 bytes" in str(reader.end())


@pytest.mark.parametrize("size", [4, 1000])
def test_a_message_that_is_too_large_is_refused_by_its_prefix(size):
    reader = framing.Reader(10, None)
    data = framing.PREFIX.pack(0, 11)
    assert reader.feed(data[:size] if size < len(data) else b"") == []
    with pytest.raises(TooLarge, match=r"11 bytes.*10"):
        reader.feed(data[size:] if size < len(data) else data)


def test_gzip_is_unpacked_up_to_the_limit():
    reader = framing.Reader(100, b"gzip")
    assert reader.feed(packed(gzip.compress(b"y" * 100))) == [b"y" * 100]
    with pytest.raises(TooLarge, match="limit is 100"):
        reader.feed(packed(gzip.compress(bytes(1_000_000))[:100]))


@pytest.mark.parametrize(
    ("encoding", "message", "error", "said"),
    [
        (b"gzip", b"nonsense", InvalidRequest, "no gzip"),
        (b"gzip", gzip.compress(b"abc", mtime=0)[:-5], InvalidRequest, "end is missing"),
        (b"deflate", b"abc", Unsupported, "deflate"),
        (None, b"abc", Unsupported, "nothing"),
    ],
)
def test_what_cannot_be_unpacked_is_refused(encoding, message, error, said):
    with pytest.raises(error, match=said):
        framing.Reader(100, encoding).feed(packed(message))


@pytest.mark.parametrize(
    ("given", "seconds"), [(b"2H", 7200), (b"1M", 60), (b"15S", 15), (b"250m", 0.25), (b"1u", 1e-6)]
)
def test_a_timeout_is_in_the_unit_it_names(given, seconds):
    assert framing.seconds([(b"te", b"trailers"), (b"grpc-timeout", given)]) == seconds
    assert framing.seconds([(b"te", b"trailers")]) is None


@pytest.mark.parametrize("given", [b"", b"S", b"1", b"1x", b"-1S", b"123456789S"])
def test_a_timeout_that_is_none_is_refused(given):
    with pytest.raises(InvalidRequest, match="grpc-timeout"):
        framing.seconds([(b"grpc-timeout", given)])


def test_trailers_escape_what_a_header_cannot_hold():
    made = dict(framing.trailers(StatusCode.NOT_FOUND, "no model 'ü' at 100%\n", [("a", "b")]))
    assert made == {
        b"grpc-status": b"5",
        b"grpc-message": b"no model '%C3%BC' at 100%25%0A",
        b"a": b"b",
    }
    assert framing.trailers(StatusCode.OK) == [(b"grpc-status", b"0")]
