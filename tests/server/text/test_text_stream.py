"""Tokens into text: whole characters, and nothing of a stop string."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ds_engines.openvino_genai import Delta
from ds_serve.text.text_stream import StopScanner, TextStream

# One token for each byte, so that every character above ASCII is spread over tokens.
BYTES = tuple(bytes([byte]) for byte in range(256))


def deltas(text: bytes, size: int, finish: str = "length") -> list[Delta]:
    """The text as deltas of `size` one-byte tokens, with their number as log-probability."""
    parts = [list(text[at : at + size]) for at in range(0, len(text), size)] or [[]]
    found = [Delta(0, part, [-float(token) for token in part]) for part in parts]
    found[-1].finish = finish  # type: ignore[assignment]
    return found


def expected(text: str, stops: list[str]) -> str:
    """What a reader of the whole text at once would keep."""
    places = [at for stop in stops if (at := text.find(stop)) >= 0]
    return text[: min(places)] if places else text


@given(st.text(), st.integers(1, 7))
def test_streamed_pieces_join_to_the_text(text: str, size: int) -> None:
    stream = TextStream(BYTES)
    pieces = [stream.feed(delta) for delta in deltas(text.encode(), size)]
    assert "".join(piece.text for piece in pieces) == text
    assert [piece.finish for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].finish == "length"
    assert stream.tokens == len(text.encode())


@given(
    st.text(alphabet="abß世", max_size=40),
    st.lists(st.text(alphabet="abß世", min_size=1, max_size=4), max_size=4),
    st.integers(1, 5),
)
def test_stop_strings_are_cut_wherever_they_fall(text: str, stops: list[str], size: int) -> None:
    stream = TextStream(BYTES, stops)
    found, finish = "", None
    for delta in deltas(text.encode(), size):
        piece = stream.feed(delta)
        found += piece.text
        finish = piece.finish
        if finish == "stop":
            break
    # A stop that ends first is seen first, even where a longer one began before it.
    if any(stop in text for stop in stops):
        assert finish == "stop"
        assert text.startswith(found)
        assert not any(stop in found for stop in stops)
    else:
        assert (found, finish) == (text, "length")


@given(st.text(alphabet="ab", max_size=30), st.text(alphabet="ab", min_size=1, max_size=4))
def test_one_stop_string_cuts_at_its_first_place(text: str, stop: str) -> None:
    scanner = StopScanner([stop])
    found = "".join(scanner.feed(character) for character in text)
    found += "" if scanner.hit else scanner.flush()
    assert found == expected(text, [stop])
    assert scanner.hit == (stop in text)


def test_text_that_might_begin_a_stop_is_held_back() -> None:
    scanner = StopScanner(["<end>"])
    assert scanner.feed("a <en") == "a "
    assert scanner.feed("try") == "<entry"
    assert scanner.feed("<end") == ""
    assert scanner.flush() == "<end"


def test_a_character_cut_off_by_the_length_is_dropped() -> None:
    stream = TextStream(BYTES)
    [piece] = [stream.feed(delta) for delta in deltas("é世".encode()[:-1], 10)]
    assert piece.text == "é"


def test_bytes_that_are_never_utf8_become_the_replacement_character() -> None:
    stream = TextStream(BYTES)
    [piece] = [stream.feed(delta) for delta in deltas(b"a\xffb", 10)]
    assert piece.text == "a\ufffdb"


def test_logprobs_come_with_their_text_and_stop_with_it() -> None:
    stream = TextStream(BYTES, ["cd"])
    pieces = [stream.feed(delta) for delta in deltas(b"abcdef", 1)[:4]]
    assert [piece.text for piece in pieces] == ["a", "b", "", ""]
    assert [[t.piece for t in piece.logprobs] for piece in pieces] == [[b"a"], [b"b"], [], []]
    assert pieces[-1].finish == "stop"
    assert stream.tokens == 4


def test_a_held_back_tokens_logprob_comes_when_its_text_does() -> None:
    stream = TextStream(BYTES, ["cd"])
    pieces = [stream.feed(delta) for delta in deltas(b"cx", 1)]
    assert [[t.piece for t in piece.logprobs] for piece in pieces] == [[], [b"c", b"x"]]
    assert [(t.start, t.end) for t in pieces[1].logprobs] == [(0, 1), (1, 2)]


def test_control_tokens_are_counted_but_never_text() -> None:
    stream = TextStream((b"a", b"", b"b"))
    piece = stream.feed(Delta(0, [0, 1, 2], [-1.0, -2.0, -3.0], "stop"))
    assert piece.text == "ab"
    assert [t.logprob for t in piece.logprobs] == [-1.0, -3.0]
    assert stream.tokens == 3
