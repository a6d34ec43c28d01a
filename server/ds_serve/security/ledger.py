"""What each key has used up, in memory that all gateways of a server share.

One number a key holds the state of its token bucket: when the bucket will be full again. Beside it
each gateway counts the key's requests that it has under way, in a place of its own, so that those
of a gateway that died can be told and taken off. A lock on the key's bytes of the file makes a
change one step; the kernel lifts the locks of whoever dies.
"""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path

from ds_engines.errors import ConfigError, RateLimited
from ds_serve.security.keys import Key
from ds_serve.security.locks import Locks

SLOTS = 16384
"""Keys with limits that one server can have in its life."""

GATEWAYS = 64
"""Gateways that can count requests at one time."""

_IDS = 8  # before them, how many places were ever taken
_FULL_AT = _IDS + 8 * SLOTS
_COUNTS = _FULL_AT + 8 * SLOTS
_END = _COUNTS + 4 * SLOTS * GATEWAYS
_LOCKS = _END
"""Bytes that nobody writes, but locks: one for each place and slot, and one for taking them."""

_NEW = GATEWAYS + SLOTS

SECOND = 1_000_000_000


class Ledger:
    """One process's view of the shared file, in which it takes a place."""

    def __init__(self, file: Path) -> None:
        """Makes the file where it is missing. Raises ConfigError where all places are taken."""
        self._fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._fd, _END)
        view = memoryview(mmap.mmap(self._fd, _END))
        self._places = view[:_IDS].cast("q")
        self._ids = view[_IDS:_FULL_AT].cast("Q")
        self._full_at = view[_FULL_AT:_COUNTS].cast("q")
        self._counts = view[_COUNTS:_END].cast("i")
        self._locks = Locks(self._fd, _LOCKS)
        self._slots: dict[bytes, int] = {}
        self._place = self._take_place()

    def spend(self, key: Key) -> None:
        """A request that ends at once. Raises RateLimited saying when to come again."""
        slot = self._slot(key)
        with self._locks.held(GATEWAYS + slot):
            self._spend(key, slot)

    def enter(self, key: Key) -> int:
        """A request that is under way until its slot, which this gives, is told to `leave`. Raises
        RateLimited saying when to come again.
        """
        slot = self._slot(key)
        with self._locks.held(GATEWAYS + slot):
            if key.concurrency:
                self._check_room(key, slot)
            self._spend(key, slot)
            self._counts[self._place * SLOTS + slot] += 1
        return slot

    def leave(self, slot: int) -> None:
        """A request that was counted has ended."""
        self._counts[self._place * SLOTS + slot] -= 1

    def _slot(self, key: Key) -> int:
        slot = self._slots.get(key.digest)
        if slot is None:
            slot = self._slots[key.digest] = self._find(key.digest)
        return slot

    def _check_room(self, key: Key, slot: int) -> None:
        if self._under_way(slot) < key.concurrency:
            return
        self._take_off_the_dead(slot)
        if self._under_way(slot) >= key.concurrency:
            raise RateLimited(
                f"key {key.name!r} has {key.concurrency} requests under way, which is its limit"
            )

    def _spend(self, key: Key, slot: int) -> None:
        """The bucket holds `burst`; each request takes 1, and it fills with the key's rate."""
        if not key.requests_per_second:
            return
        now = time.monotonic_ns()
        each = round(SECOND / key.requests_per_second)
        full_at = max(self._full_at[slot], now) + each
        missing = full_at - now - each * max(1, key.burst)
        if missing > 0:
            raise RateLimited(
                f"key {key.name!r} has sent more than {key.requests_per_second:g} requests a "
                "second, which is its limit",
                retry_after=missing / SECOND,
            )
        self._full_at[slot] = full_at

    def _under_way(self, slot: int) -> int:
        return sum(self._counts[slot : self._places[0] * SLOTS : SLOTS])

    def _take_off_the_dead(self, slot: int) -> None:
        for place in range(self._places[0]):
            at = place * SLOTS + slot
            if self._counts[at] and place != self._place and self._locks.take(place):
                self._counts[at] = 0
                self._locks.release(place)

    def _take_place(self) -> int:
        """The first that no living process holds; it is held until this one ends."""
        for place in range(GATEWAYS):
            if self._locks.take(place):
                mine = self._counts[place * SLOTS : (place + 1) * SLOTS]
                mine[:] = memoryview(bytes(mine.nbytes)).cast("i")
                with self._locks.held(_NEW):
                    self._places[0] = max(self._places[0], place + 1)
                return place
        os.close(self._fd)
        raise ConfigError(f"keys with limits can be kept by up to {GATEWAYS} gateways")

    def _find(self, digest: bytes) -> int:
        """The key's slot, taken now where it has none. Raises RateLimited where none is left."""
        id = int.from_bytes(digest[:8], "little") or 1
        with self._locks.held(_NEW):
            for step in range(SLOTS):
                slot = (id + step) % SLOTS
                if self._ids[slot] in (0, id):
                    self._ids[slot] = id
                    return slot
        raise RateLimited(f"this server has seen {SLOTS} keys with limits; it must be started anew")
