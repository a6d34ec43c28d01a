"""When the clients try again, and when they do not."""

from __future__ import annotations

import random
import time

import grpc
import numpy as np
import pytest

from ds_client import (
    Client,
    ClientError,
    DeadlineExceeded,
    InvalidRequest,
    Lost,
    Overloaded,
    RateLimited,
    Retry,
    ServerFailure,
    Unavailable,
    Unreachable,
)
from ds_client.retry import Attempts

X = np.ones((1, 2), np.float32)
QUICK = Retry(attempts=3, first=0.01)

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
REFUSED = (UNAVAILABLE, "the queue is full", (("retry-after", "0"), ("error-kind", "Overloaded")))
LIMITED = (grpc.StatusCode.RESOURCE_EXHAUSTED, "too fast", (("retry-after", "0"),))
LOST = (UNAVAILABLE, "its worker died", (("retry-after", "1"), ("error-kind", "Lost")))
RESET = (UNAVAILABLE, "Socket closed", ())
BROKEN = (grpc.StatusCode.INTERNAL, "the engine failed", (("error-kind", "EngineFailure"),))
LATE = (grpc.StatusCode.DEADLINE_EXCEEDED, "no answer", (("error-kind", "DeadlineExceeded"),))


@pytest.mark.parametrize("failure", [REFUSED, LIMITED], ids=["full", "limited"])
def test_what_was_refused_is_tried_again(connect, echo, failure):
    echo.failures = [failure, failure]
    np.testing.assert_array_equal(connect(retry=QUICK).infer("echo", {"x": X})["x"], X)
    assert len(echo.requests) == 3


def test_in_the_end_the_last_refusal_is_raised(connect, echo):
    echo.failures = [REFUSED] * 9
    with pytest.raises(Overloaded, match="the queue is full"):
        connect(retry=QUICK).infer("echo", {"x": X})
    assert len(echo.requests) == 3


@pytest.mark.parametrize(
    ("failure", "kind"),
    [(LOST, Lost), (RESET, Unavailable), (BROKEN, ServerFailure), (LATE, DeadlineExceeded)],
    ids=["lost", "reset", "broken", "late"],
)
def test_what_may_have_run_is_not_tried_again(connect, echo, failure, kind):
    echo.failures = [failure]
    with pytest.raises(ClientError) as caught:
        connect(retry=QUICK).infer("echo", {"x": X})
    assert type(caught.value) is kind
    assert len(echo.requests) == 1


def test_a_request_of_a_sequence_is_not_tried_again(connect, echo):
    echo.failures = [REFUSED]
    with pytest.raises(Overloaded):
        connect(retry=QUICK).infer("echo", {"x": X}, parameters={"sequence_id": 1})
    assert len(echo.requests) == 1


def test_nothing_is_tried_again_without_retry(connect, echo):
    echo.failures = [REFUSED]
    with pytest.raises(Overloaded):
        connect(retry=None).infer("echo", {"x": X})


def test_a_pause_that_the_timeout_does_not_allow_is_not_made(connect, echo):
    echo.failures = [(UNAVAILABLE, "full", (("retry-after", "30"),))] * 2
    start = time.monotonic()
    with pytest.raises(Overloaded):
        connect(timeout=20).infer("echo", {"x": X})
    assert time.monotonic() - start < 20
    assert len(echo.requests) == 1


def test_all_attempts_share_the_timeout(connect, echo):
    echo.failures = [REFUSED]
    with pytest.raises(DeadlineExceeded):
        connect(retry=QUICK).infer("slow", {"x": X}, timeout=0.5)


def test_a_text_that_was_refused_is_asked_for_again(connect, echo):
    echo.failures = [LIMITED]
    pieces = connect(retry=QUICK).generate("writer", "so it goes", max_tokens=3)
    assert list(pieces) == ["so ", "it ", "goes "]
    echo.failures = [LIMITED] * 9
    with pytest.raises(RateLimited):
        list(connect(retry=QUICK).generate("writer", "hello", max_tokens=1))


def test_a_server_that_comes_late_is_waited_for(serve, echo):
    port = serve.free_port()
    with Client(f"127.0.0.1:{port}", retry=Retry(attempts=60, first=0.2, most=0.5)) as client:
        with pytest.raises(Unreachable):
            client.infer("echo", {"x": X}, timeout=0.3)
        serve.later(echo, port, 1.0)
        np.testing.assert_array_equal(client.infer("echo", {"x": X}, timeout=30)["x"], X)


def test_pauses_are_drawn_below_a_bound_that_doubles():
    random.seed(1)
    bounds = [0.1, 0.2, 0.4, 0.5, 0.5]
    for _ in range(200):
        attempts = Attempts(Retry(attempts=6, first=0.1, most=0.5), None)
        pauses = [attempts.pause(Unreachable("nobody")) for _ in bounds]
        assert all(0 <= pause <= bound for pause, bound in zip(pauses, bounds, strict=True))
    assert pauses[0] != pauses[1]
    late = Attempts(Retry(first=0.1), None).pause(Overloaded("full", retry_after=3))
    assert 3 <= late <= 3.1


def test_a_policy_that_makes_no_sense_is_refused():
    with pytest.raises(InvalidRequest, match="at least one attempt"):
        Retry(attempts=0)
