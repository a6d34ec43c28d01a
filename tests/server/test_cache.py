"""The response cache: what it keeps, what it forgets, and that its bytes are bounded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ds_serve.scheduler.cache import Cache
from ds_serve.worker.budget import SharedBudget


class Pool:
    """A budget of which others hold `others` bytes."""

    def __init__(self, total: int) -> None:
        self.total, self.share, self.used, self.others = total, total, 0, 0

    def take(self, size: int) -> bool:
        if self.used + self.others + size > self.total:
            return False
        self.used += size
        return True

    def give(self, size: int) -> None:
        self.used -= size


class Machine(RuleBasedStateMachine):
    @initialize(total=st.sampled_from([10, 30]))
    def start(self, total: int) -> None:
        self.pool = Pool(total)
        self.cache: Cache[int] = Cache(self.pool)
        self.order: list[bytes] = []
        self.values: dict[bytes, tuple[int, int]] = {}
        self.count = 0

    @rule(key=st.sampled_from([b"a", b"b", b"c", b"d", b"e"]), size=st.integers(1, 12))
    def put(self, key: bytes, size: int) -> None:
        self.count += 1
        if key in self.order:
            self.forget(key)
        kept = self.cache.put(key, self.count, size)
        free = self.pool.total - self.pool.others
        assert kept == (size <= min(free, self.pool.share))
        if size <= self.pool.share:
            while self.order and self.held() + size > min(free, self.pool.share):
                self.forget(self.order[0])
        if kept:
            self.order.append(key)
            self.values[key] = (self.count, size)

    @rule(key=st.sampled_from([b"a", b"b", b"c", b"d", b"e"]))
    def get(self, key: bytes) -> None:
        wanted = self.values[key][0] if key in self.values else None
        assert self.cache.get(key) == wanted
        if key in self.order:
            self.order.remove(key)
            self.order.append(key)

    @rule(part=st.integers(1, 3))
    def share(self, part: int) -> None:
        """Other caches come and go."""
        self.pool.share = self.pool.total // part
        self.cache.trim()
        while self.held() > self.pool.share:
            self.forget(self.order[0])
        self.pool.others = self.pool.total - self.pool.share if part > 1 else 0

    def held(self) -> int:
        return sum(size for _, size in self.values.values())

    def forget(self, key: bytes) -> None:
        self.order.remove(key)
        del self.values[key]

    @invariant()
    def bounded(self) -> None:
        if hasattr(self, "cache"):
            assert self.cache.size == self.pool.used == self.held() <= self.pool.share
            assert len(self.cache) == len(self.order)


Machine.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestCache = Machine.TestCase


def test_workers_share_one_bound(tmp_path: Path) -> None:
    first = SharedBudget(tmp_path / "cache", 100)
    assert first.share == 100
    assert first.take(70)
    second = SharedBudget(tmp_path / "cache", 100)
    assert (first.share, second.share) == (50, 50)
    assert not second.take(31)
    assert second.take(30)
    assert first.used == second.used == 100
    first.give(20)
    assert second.take(20)
    second.close()
    assert (first.share, first.used) == (100, 50)
    first.close()


def test_what_a_dead_worker_held_is_free_again(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from ds_serve.worker.budget import SharedBudget; "
        "assert SharedBudget(pathlib.Path(sys.argv[1]), 100).take(90)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "cache")], check=True)
    budget = SharedBudget(tmp_path / "cache", 100)
    assert budget.take(90)
    assert budget.share == 100
    budget.close()


def test_there_is_a_line_for_so_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ds_serve.worker.budget.LINES", 1)
    budget = SharedBudget(tmp_path / "cache", 100)
    with pytest.raises(OSError, match="1 workers share the response cache already"):
        SharedBudget(tmp_path / "cache", 100)
    budget.close()
