"""The limits of keys hold for all gateways together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager

import pytest

from ds_engines.errors import ConfigError, Forbidden, RateLimited
from ds_serve.security import ledger as ledgers
from ds_serve.security.guard import KeyGuard, Kind
from ds_serve.security.keys import Key, entry, make
from ds_serve.security.ledger import Ledger
from ds_serve.security.locks import Locks

PROCESS = """
import json, sys, time
from pathlib import Path
from ds_engines.errors import RateLimited
from ds_serve.security.keys import Key
from ds_serve.security.ledger import Ledger

ledger = Ledger(Path(sys.argv[1]))
key = Key("k", b"k" * 32, **json.loads(sys.argv[2]))
print("ready", flush=True)
for line in sys.stdin:
    order, _, number = line.partition(" ")
    taken = []
    if order == "hammer":
        end = time.monotonic() + float(number)
        while time.monotonic() < end:
            try:
                ledger.leave(ledger.enter(key))
                taken.append(1)
            except RateLimited:
                pass
    elif order == "hold":
        for _ in range(int(number)):
            try:
                taken.append(ledger.enter(key))
            except RateLimited:
                break
    elif order == "drop":
        for _ in range(int(number)):
            ledger.leave(ledger.enter(Key("k", key.digest)))
            ledger.leave(ledger._slot(key))
    print(len(taken), flush=True)
"""


class Gateway:
    """A process with a ledger, which does as it is told."""

    def __init__(self, file, **limits):
        command = [sys.executable, "-c", PROCESS, str(file), json.dumps(limits)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout.readline() == "ready\n"

    def begin(self, order, number):
        self.process.stdin.write(f"{order} {number}\n")
        self.process.stdin.flush()

    def end(self):
        return int(self.process.stdout.readline())

    def do(self, order, number):
        self.begin(order, number)
        return self.end()

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(10)

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.close()


@pytest.fixture
def start(tmp_path):
    """Starts gateways over one file, which end with the test."""
    with ExitStack() as stack:

        def start(**limits):
            gateway = Gateway(tmp_path / "limits", **limits)
            stack.callback(gateway.close)
            return gateway

        yield start


def test_a_rate_holds_for_all_gateways_together(start):
    rate, burst, seconds = 200, 20, 2.0
    gateways = [start(requests_per_second=rate, burst=burst) for _ in range(3)]
    begun = time.monotonic()
    for gateway in gateways:
        gateway.begin("hammer", seconds)
    taken = [gateway.end() for gateway in gateways]
    took = time.monotonic() - begun
    assert rate * seconds * 0.8 <= sum(taken) <= burst + rate * took + 1


def test_requests_under_way_are_counted_for_all_gateways_together(start):
    first, second = start(concurrency=8), start(concurrency=8)
    assert first.do("hold", 5) == 5
    assert second.do("hold", 5) == 3
    first.do("drop", 2)
    assert second.do("hold", 5) == 2


def test_what_a_dead_gateway_had_under_way_counts_no_more(start):
    first, second = start(concurrency=8), start(concurrency=8)
    assert first.do("hold", 8) == 8
    assert second.do("hold", 1) == 0
    first.kill()
    assert second.do("hold", 9) == 8
    third = start(concurrency=8)  # takes the place of the first
    assert third.do("hold", 1) == 0
    second.kill()
    assert third.do("hold", 9) == 8


def test_a_gateway_that_dies_or_hangs_blocks_nobody(start):
    limits = {"requests_per_second": 1e9, "concurrency": 1000}
    gateways = [start(**limits) for _ in range(3)]
    for gateway in gateways:
        gateway.begin("hammer", 1.5)
    time.sleep(0.5)
    gateways[0].kill()
    os.kill(gateways[1].process.pid, signal.SIGSTOP)
    try:
        assert gateways[2].end() > 1000
        assert start(**limits).do("hold", 5) == 5
    finally:
        os.kill(gateways[1].process.pid, signal.SIGCONT)
    gateways[1].end()


@contextmanager
def clock_at(monkeypatch, now):
    """`now` is a list with the time in seconds."""
    with monkeypatch.context() as patch:
        patch.setattr(ledgers.time, "monotonic_ns", lambda: round(now[0] * 1e9))
        yield


def test_a_bucket_holds_the_burst_and_fills_with_the_rate(tmp_path, monkeypatch):
    ledger = Ledger(tmp_path / "limits")
    key = Key("k", b"1" * 32, requests_per_second=4, burst=3)
    now = [1000.0]
    with clock_at(monkeypatch, now):
        for _ in range(3):
            ledger.spend(key)
        with pytest.raises(RateLimited, match="'k' has sent more than 4 requests") as caught:
            ledger.spend(key)
        assert caught.value.retry_after == pytest.approx(0.25)
        now[0] += 0.2
        with pytest.raises(RateLimited) as caught:
            ledger.spend(key)
        assert caught.value.retry_after == pytest.approx(0.05)
        now[0] += caught.value.retry_after
        ledger.spend(key)
        now[0] += 100
        for _ in range(3):
            ledger.leave(ledger.enter(key))
        with pytest.raises(RateLimited):
            ledger.enter(key)


def test_keys_are_counted_apart(tmp_path):
    ledger = Ledger(tmp_path / "limits")
    # The same place is the first for both.
    one, other = (Key(n, (7 + i * ledgers.SLOTS).to_bytes(32, "little"), concurrency=1)
                  for i, n in enumerate("ab"))  # fmt: skip
    ledger.enter(one)
    ledger.enter(other)
    with pytest.raises(RateLimited, match="key 'a' has 1 requests under way"):
        ledger.enter(one)


def test_a_request_refused_for_its_rate_is_not_under_way(tmp_path):
    ledger = Ledger(tmp_path / "limits")
    key = Key("k", b"2" * 32, requests_per_second=0.001, burst=1, concurrency=1)
    ledger.leave(ledger.enter(key))
    for _ in range(2):
        with pytest.raises(RateLimited, match="requests a second"):
            ledger.enter(key)


@pytest.fixture
def guarded(tmp_path):
    """A guard with one key of these limits, and the key's header."""

    def made(limits):
        secret, digest = make()
        file = tmp_path / "keys.toml"
        file.write_text(entry("k", digest) + limits)
        return KeyGuard(file, tmp_path), f"Bearer {secret}"

    return made


def test_a_caller_is_under_way_until_it_is_closed(guarded):
    guard, header = guarded("concurrency = 2\nmodels = ['m']")
    callers = [guard.check(header, "m", Kind.INFER) for _ in range(2)]
    with pytest.raises(RateLimited) as caught:
        guard.check(header, "m", Kind.INFER)
    assert caught.value.retry_after == 1.0
    guard.check(header, "m", Kind.READ)
    with pytest.raises(Forbidden):
        guard.check(header, "other", Kind.INFER)
    for _ in range(2):
        callers[0].close()
    guard.check(header, "m", Kind.INFER)
    with pytest.raises(RateLimited):
        guard.check(header, "m", Kind.INFER)


def test_reading_counts_for_the_rate(guarded):
    guard, header = guarded("requests_per_second = 0.01\nburst = 2")
    stream = guard.identify(header)
    stream.enter("m", Kind.INFER)
    guard.check(header, "", Kind.READ)
    with pytest.raises(RateLimited):
        stream.enter("m", Kind.INFER)


def test_there_are_places_for_so_many_gateways(tmp_path, monkeypatch):
    monkeypatch.setattr(Locks, "take", lambda self, byte: False)
    with pytest.raises(ConfigError, match="up to 64 gateways"):
        Ledger(tmp_path / "limits")


def test_more_keys_than_there_is_room_for_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(ledgers, "SLOTS", 2)
    ledger = Ledger(tmp_path / "limits")
    for digest in (b"a", b"b"):
        ledger.enter(Key("k", digest * 32, concurrency=1))
    with pytest.raises(RateLimited, match="must be started anew"):
        ledger.enter(Key("k", b"c" * 32, concurrency=1))
