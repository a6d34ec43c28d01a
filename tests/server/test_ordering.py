"""Answers leave in the order of their requests."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_engines.errors import Overloaded
from ds_serve.scheduler.ordering import Ordering


@given(st.data())
def test_answers_leave_in_order_each_once_and_as_early_as_may_be(data: st.DataObject) -> None:
    ordering: Ordering[int] = Ordering(100)
    count = data.draw(st.integers(0, 12))
    turns = data.draw(st.permutations(range(count)))
    dropped = data.draw(st.sets(st.sampled_from(range(count)))) if count else set()
    for key in range(count):
        ordering.admit(key)
    left: list[int] = []
    settled: set[int] = set()
    for key in turns:
        settled.add(key)
        left += ordering.drop(key) if key in dropped else ordering.answer(key, key)
        first = next((each for each in range(count) if each not in settled), count)
        assert left == [each for each in range(first) if each not in dropped]
    assert len(ordering) == 0


def test_no_more_are_admitted_than_may_be_held_back() -> None:
    ordering: Ordering[str] = Ordering(2)
    for key in (1, 2):
        ordering.check()
        ordering.admit(key)
    ordering.answer(2, "held back")
    with pytest.raises(Overloaded, match="2 answers wait"):
        ordering.check()
    assert ordering.answer(1, "first") == ["first", "held back"]
    ordering.check()


def test_an_answer_that_nobody_waits_for_stays_away() -> None:
    ordering: Ordering[str] = Ordering(100)
    ordering.admit(1)
    ordering.drop(1)
    assert ordering.answer(1, "late") == []
