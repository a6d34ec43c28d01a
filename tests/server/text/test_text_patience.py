"""How long an engine may be silent: by the clock, and by what it got of the processors."""

from __future__ import annotations

import os

import pytest

from ds_serve.text.hang import Patience, processor_seconds


@pytest.mark.parametrize(
    ("share", "ends"),
    [(0.0, 31), (0.005, 31), (2.0, 31), (1.0, 31), (0.5, 60), (0.1, 300)],
    ids=["stopped", "dead", "two threads spin", "one spins", "starved", "starved more"],
)
def test_who_is_starved_is_waited_for(share: float, ends: int) -> None:
    now = [0]
    patience = Patience(30.0, lambda: 100 + share * now[0])
    assert not patience.is_over(0.0)
    for now[0] in range(1, 1000):
        if patience.is_over(float(now[0])):
            break
    assert now[0] == ends


def test_a_step_begins_the_count_anew() -> None:
    now = [0.0]
    patience = Patience(30.0, lambda: now[0])
    assert not patience.is_over(20.0)
    now[0] = 29.0
    assert not patience.is_over(1.0)
    assert patience.is_over(31.0), "nothing was used since"
    now[0] = 40.0
    assert not patience.is_over(32.0)


def test_a_process_s_time_is_known() -> None:
    before = processor_seconds(os.getpid())
    sum(range(3_000_000))
    assert processor_seconds(os.getpid()) > before > 0
    assert processor_seconds(2**22 + 1) == 0.0
