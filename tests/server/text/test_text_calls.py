"""Calls read out of an answer that comes in pieces."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_engines.openvino_tools import Objects, Wrapped
from ds_serve.text.text_stream import Piece
from ds_serve.text.tools import CallReader

WRAPPED = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'


def read(style: Any, parts: list[str], finish: str = "stop", parallel: bool = True) -> Any:
    reader = CallReader(style, parallel)
    ends = [None] * (len(parts) - 1) + [finish]
    pieces = [reader.feed(Piece(part, [], end)) for part, end in zip(parts, ends, strict=True)]
    calls = [call for piece in pieces for call in piece.calls]
    return "".join(piece.text for piece in pieces), calls, pieces[-1].finish


@given(st.lists(st.integers(1, 200), max_size=6))
def test_however_the_pieces_are_cut(cuts: list[int]) -> None:
    text = f"I look.\n{WRAPPED}\n{WRAPPED}"
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    parts = [text[a:b] for a, b in itertools.pairwise(places)]
    said, calls, finish = read(Wrapped(), parts)
    assert said.strip() == "I look."
    assert [(call.index, call.name, call.arguments) for call in calls] == [
        (0, "f", '{"x": 1}'),
        (1, "f", '{"x": 1}'),
    ]
    assert finish == "tool_calls"
    assert calls[0].id != calls[1].id


def test_what_only_looks_like_a_call_is_text() -> None:
    assert read(Wrapped(), ["a <tool", "_box> b"])[0] == "a <tool_box> b"
    assert read(Wrapped(), ["<tool_call>no</tool_call>"])[0] == "<tool_call>no</tool_call>"
    assert read(Objects(), ["{", '"name": "Ann"}'])[0] == '{"name": "Ann"}'
    assert read(Objects(), ["Hello ", "{"])[0] == "Hello {"


@pytest.mark.parametrize("style", [Wrapped(), Objects()])
def test_a_call_cut_short_is_text(style: Any) -> None:
    half = WRAPPED[:30] if isinstance(style, Wrapped) else '{"tool_calls": [{"na'
    said, calls, finish = read(style, [half], "length")
    assert (said, calls, finish) == (half, [], "length")


def test_further_calls_are_dropped_where_one_is_wanted() -> None:
    said, calls, finish = read(Wrapped(), [WRAPPED, WRAPPED], parallel=False)
    assert (said, len(calls), finish) == ("", 1, "tool_calls")
