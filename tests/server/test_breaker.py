"""When a server that fails is left alone, and when it is tried again."""

from __future__ import annotations

from ds_serve.gateway.breaker import CLOSED, FAILURES, HALF_OPEN, LONGEST, OPEN, PAUSE, Breaker


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def broken() -> tuple[Breaker, Clock]:
    clock = Clock()
    breaker = Breaker(clock)
    for _ in range(FAILURES):
        assert breaker.allows()
        breaker.failed()
    return breaker, clock


def test_failures_in_a_row_open_it() -> None:
    breaker, _ = broken()
    assert breaker.state == OPEN
    assert not breaker.allows()
    assert breaker.wait == PAUSE


def test_a_success_between_them_starts_the_count_anew() -> None:
    breaker = Breaker(Clock())
    for _ in range(3):
        for _ in range(FAILURES - 1):
            breaker.failed()
        breaker.succeeded()
    assert breaker.state == CLOSED


def test_one_request_is_the_proof() -> None:
    breaker, clock = broken()
    clock.now += PAUSE
    assert breaker.allows()
    assert breaker.state == HALF_OPEN
    assert not breaker.allows(), "one is enough"
    breaker.succeeded()
    assert breaker.allows()


def test_a_proof_that_fails_makes_the_pause_longer() -> None:
    breaker, clock = broken()
    pause = PAUSE
    for _ in range(10):
        clock.now += pause
        assert breaker.allows()
        breaker.failed()
        pause = min(2 * pause, LONGEST)
        assert breaker.wait == pause


def test_a_server_that_is_not_there_is_left_alone_until_it_is_found() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    breaker.hold(8)
    assert not breaker.allows()
    assert breaker.wait == 8
    breaker.found()
    assert breaker.allows()


def test_being_there_is_no_proof_of_a_server_that_answers_with_failures() -> None:
    breaker, _ = broken()
    breaker.found()
    assert breaker.state == OPEN
    silent = Breaker(Clock())
    for _ in range(FAILURES):
        silent.failed(silent=True)
    silent.found()
    assert silent.state == CLOSED


def test_a_proof_that_nobody_waited_for_is_none() -> None:
    breaker, clock = broken()
    clock.now += PAUSE
    assert breaker.allows()
    breaker.gave_up()
    assert breaker.allows(), "the next one is"
