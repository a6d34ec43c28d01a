"""Who is next for a text model, and when there is room again, with a clock of the test's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ds_serve.gateway.text_load import Load, read, together
from ds_serve.gateway.text_queue import Drain, FairQueue, Waiting
from ds_serve.security.text_ledger import NOBODY, Seat, TextLedger

EVERYTHING = 1 << 40


@pytest.fixture
def seat() -> Seat:
    return TextLedger().seat("m")


def order(seat: Seat, *waiting: tuple[str, int, int]) -> list[str]:
    """In which order keys are let in: each has a name, tokens and a priority."""
    queue: FairQueue[None] = FairQueue(seat.urgency)
    for key, tokens, priority in waiting:
        queue.push(Waiting(key, tokens, priority, 0.0, None))
    served = []
    while (first := queue.first()) is not None:
        one, urgency = first
        assert seat.enter(one.key, one.tokens, urgency, EVERYTHING)
        queue.remove(one)
        served.append(one.key)
    assert (len(queue), queue.tokens) == (0, 0)
    return served


def test_a_flood_of_one_key_does_not_keep_another_waiting(seat: Seat) -> None:
    flood = [("a", 100, 0)] * 5
    assert order(seat, *flood, ("b", 100, 0)).index("b") <= 1


def test_keys_get_as_many_tokens_not_as_many_requests(seat: Seat) -> None:
    long, short = [("long", 1000, 0)] * 4, [("short", 100, 0)] * 40
    served = order(seat, *long, *short)
    half = served[: served.index("long", served.index("long") + 1)]
    assert 9 <= half.count("short") <= 11


def test_a_key_that_was_idle_has_saved_nothing_up(seat: Seat) -> None:
    order(seat, *[("a", 100, 0)] * 50)
    served = order(seat, *[("a", 100, 0)] * 4, *[("b", 100, 0)] * 4)
    assert sorted(served[:4]) == ["a", "a", "b", "b"]


def test_a_lower_priority_comes_first_whatever_its_key_had(seat: Seat) -> None:
    order(seat, *[("a", 1000, 0)] * 9)
    assert order(seat, ("b", 10, 1), ("a", 10, 0), ("c", 10, 9)) == ["a", "b", "c"]


def test_who_waits_no_more_is_not_next(seat: Seat) -> None:
    queue: FairQueue[None] = FairQueue(seat.urgency)
    first = Waiting("a", 1, 0, 5.0, None)
    queue.push(first)
    queue.push(Waiting("a", 2, 0, 9.0, None))
    assert queue.expired(6.0) == [first]
    queue.remove(first)
    queue.remove(first)
    found = queue.first()
    assert found is not None
    assert (found[0].tokens, queue.tokens, len(queue)) == (2, 2, 1)


def test_the_wait_is_what_was_seen_to_be_let_go() -> None:
    drain = Drain()
    assert drain.wait(10_000) == 1.0, "nothing is known yet"
    drain.see(0.0, 0)
    drain.see(10.0, 5000)
    assert drain.rate == 500
    assert drain.wait(10_000) == 20
    assert drain.wait(1) == 1.0
    for second in range(11, 100):
        drain.see(float(second), 5000 + (second - 10) * 100)
    assert drain.rate == pytest.approx(100, rel=0.1), "what is long ago does not count"


def test_room_is_what_is_left_of_the_bound(seat: Seat) -> None:
    assert seat.enter("a", 60, 1, 100)
    assert not seat.enter("a", 60, 1, 100)
    assert seat.enter("b", 40, 1, 100)
    assert (seat.in_flight, seat.done) == (100, 0)
    seat.leave(60)
    seat.leave(40)
    assert (seat.in_flight, seat.done) == (0, 100)
    assert seat.enter("a", 1000, 1, 100), "what is too large goes alone"


OTHER = """
import sys
from pathlib import Path
from ds_serve.security.text_ledger import TextLedger
ledger = TextLedger(Path(sys.argv[1]))
seat = ledger.seat("m")
assert seat.enter("a", 90, 1, 100)
seat.wait(70, 5)
print(ledger.place, flush=True)
sys.stdin.readline()
"""


def test_gateways_share_the_room_and_the_dead_are_taken_off(tmp_path: Path) -> None:
    ledger = TextLedger(tmp_path)
    seat = ledger.seat("m")
    other = subprocess.Popen(
        [sys.executable, "-c", OTHER, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"1\n"
        assert (seat.in_flight, seat.waiting) == (90, 70)
        assert not seat.enter("b", 20, 1, 100), "there is no room"
        assert not seat.enter("b", 5, 6, 100), "the other's is more urgent"
        assert seat.enter("b", 5, 4, 100)
        other.kill()
    seat.wake()  # nobody hears the bell
    assert (seat.in_flight, seat.waiting) == (5, 0)
    seat.wait(0, NOBODY)
    assert seat.enter("b", 20, 6, 100)
    ledger.close()


METRICS = """# HELP vllm:cache_config_info x
vllm:cache_config_info{block_size="16",enable_prefix_caching="True",num_gpu_blocks="1000"} 1.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.97
vllm:num_requests_waiting{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="0",model_name="m"} 7.0
"""


def test_a_worker_says_how_full_it_is() -> None:
    load = read(METRICS)
    assert load == Load(16_000, 0.97, 3.0, 7.0)
    assert load.full
    assert load.bound == 24_000
    assert not load._replace(waiting=0).full, "full, and nobody is kept waiting"
    free = Load(16_000, 0.5, 0)
    assert not load._replace(running=900).full, "so few are only its next ones"
    assert together([load, free]) == Load(32_000, 0.5, 0)
    assert together([load, Load()]).capacity == 0
    assert read("nothing") == Load()
