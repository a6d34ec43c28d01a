"""What text models have under way and what waits for them, in memory that all gateways share.

For each model each gateway says, in a place of its own, how many tokens it has in flight, how many
wait, and how urgent the first of those is: so a gateway lets a request in only where the model has
room and no other gateway has a more urgent one. Who was given how much is kept by key, as virtual
times (start-time fair queueing, Goyal et al. 1996): a key's next request is as urgent as the tokens
that it was given are few, and one that comes anew begins where the others are.
"""

from __future__ import annotations

import mmap
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

from ds_engines.errors import ConfigError, Overloaded
from ds_serve.security.locks import Locks

MODELS = 256
KEYS = 16384
GATEWAYS = 64
"""Models, keys of each model, and gateways that can be counted at one time."""

_MODEL = 3  # its id, the tokens that were ever let go, its virtual time
_PLACE = 3  # tokens in flight, tokens that wait, how urgent the first is
_KEY = 2  # its id, and the virtual time at which its next request begins
_NEW = GATEWAYS + MODELS
_CLOCK_BITS = 48
_MOST = (1 << _CLOCK_BITS) - 1
LOWEST = (1 << 14) - 1
"""The last class of priority."""

NOBODY = 0
"""How urgent the first is where none waits; all others are above."""


class TextLedger:
    """One process's view of the shared file, in which it takes a place."""

    def __init__(self, folder: Path | None = None) -> None:
        """`folder`: the run folder, in which the file and a socket for each place are; None for
        one process alone. Raises ConfigError where all places are taken.
        """
        self._folder = folder
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        file = None if folder is None else folder / "text-limits"
        self._fd = os.memfd_create("text-limits") if file is None else os.open(file, flags, 0o600)
        sizes = (1, MODELS * _MODEL, MODELS * GATEWAYS * _PLACE, KEYS * _KEY)
        end = 8 * sum(sizes)
        os.ftruncate(self._fd, end)
        words = memoryview(mmap.mmap(self._fd, end)).cast("Q")
        self._places, rest = words[:1], words[1:]
        self._models, rest = rest[: sizes[1]], rest[sizes[1] :]
        self._counts, self._keys = rest[: sizes[2]], rest[sizes[2] :]
        self._locks = Locks(self._fd, end)
        self._slots: dict[tuple[str, str], int] = {}
        self.place = self._take_place()
        self.bell = None if folder is None else Bell(folder, self.place)

    def seat(self, model: str) -> Seat:
        """This process's view of one model. Raises Overloaded where there are too many."""
        index = self._find(self._models, _MODEL, MODELS, _id(model))
        return Seat(self, model, index)

    def slot(self, model: str, key: str) -> int:
        """Where the model's virtual time for that key is. Keys that find no place share one."""
        found = self._slots.get((model, key))
        if found is None:
            try:
                found = self._find(self._keys, _KEY, KEYS, _id(f"{model}\n{key}"))
            except Overloaded:
                found = 0
            self._slots[model, key] = found
        return found

    def live(self) -> range:
        """All places that were ever taken."""
        return range(self._places[0])

    def ring(self, place: int) -> None:
        """Have that gateway look again; one that is dead is taken off."""
        if self._folder is not None and not _ring(self._folder, place):
            self.bury()

    def bury(self) -> None:
        """Take off what gateways had under way that are no more."""
        for place in self.live():
            if place != self.place and self._locks.take(place):
                self._clear(place)
                self._locks.release(place)

    def close(self) -> None:
        """Leave the place."""
        if self.bell is not None:
            self.bell.socket.close()
        os.close(self._fd)

    def _clear(self, place: int) -> None:
        for model in range(MODELS):
            at = (model * GATEWAYS + place) * _PLACE
            self._counts[at : at + _PLACE] = memoryview(bytes(8 * _PLACE)).cast("Q")

    def _take_place(self) -> int:
        for place in range(GATEWAYS):
            if self._locks.take(place):
                self._clear(place)
                with self._locks.held(_NEW):
                    self._places[0] = max(self._places[0], place + 1)
                return place
        os.close(self._fd)
        raise ConfigError(f"limits of text models can be kept by up to {GATEWAYS} gateways")

    def _find(self, words: memoryview, width: int, count: int, id: int) -> int:
        with self._locks.held(_NEW):
            for step in range(count):
                index = (id + step) % count
                if words[index * width] in (0, id):
                    words[index * width] = id
                    return index
        raise Overloaded(f"this server has seen {count} text models; it must be started anew")


class Seat:
    """A gateway at one model. Tokens are estimates; a request that is let in has those taken."""

    def __init__(self, ledger: TextLedger, model: str, index: int) -> None:
        self._ledger = ledger
        self._name = model
        self._lock = GATEWAYS + index
        self._model = ledger._models[index * _MODEL : (index + 1) * _MODEL]
        size = GATEWAYS * _PLACE
        self._counts = ledger._counts[index * size : (index + 1) * size]
        self._mine = ledger.place * _PLACE

    def urgency(self, key: str, priority: int) -> int:
        """Of the key's next request: the lower the sooner."""
        return 1 + (min(max(priority, 0), LOWEST) << _CLOCK_BITS | min(self.start(key), _MOST))

    def start(self, key: str) -> int:
        """When the key's next request begins, in virtual time."""
        slot = self._ledger.slot(self._name, key)
        return int(max(self._ledger._keys[slot * _KEY + 1], self._model[2]))

    def enter(self, key: str, tokens: int, urgency: int, most: int) -> bool:
        """Take the tokens where no more than `most` are then in flight, and nobody is more urgent.
        What is larger than that may enter where it is alone.
        """
        with self._ledger._locks.held(self._lock):
            there = self.in_flight
            if there and there + tokens > most:
                return False
            if any(urgency > other for other in self._others()):
                return False
            self._counts[self._mine] += tokens
            begin = self.start(key)
            self._model[2] = begin
            self._ledger._keys[self._ledger.slot(self._name, key) * _KEY + 1] = begin + tokens
        return True

    def leave(self, tokens: int) -> None:
        """A request that was let in has ended."""
        with self._ledger._locks.held(self._lock):
            self._counts[self._mine] -= min(tokens, self._counts[self._mine])
            self._model[1] += tokens

    def wait(self, tokens: int, urgency: int) -> None:
        """Say how many tokens wait here, and how urgent the first are; NOBODY where none do."""
        self._counts[self._mine + 1] = tokens
        self._counts[self._mine + 2] = urgency

    def bury(self) -> None:
        """Take off what gateways had under way that are no more."""
        self._ledger.bury()

    def wake(self) -> None:
        """Have the gateway look whose first is most urgent, where it is another one."""
        firsts = {
            self._counts[place * _PLACE + 2]: place
            for place in self._ledger.live()
            if self._counts[place * _PLACE + 2]
        }
        if firsts and (place := firsts[min(firsts)]) != self._ledger.place:
            self._ledger.ring(place)

    @property
    def in_flight(self) -> int:
        """Tokens that all gateways have there."""
        return self._sum(0)

    @property
    def waiting(self) -> int:
        """Tokens that wait in all gateways."""
        return self._sum(1)

    @property
    def done(self) -> int:
        """Tokens that were ever let go."""
        return int(self._model[1])

    def _sum(self, field: int) -> int:
        return sum(self._counts[field : len(self._ledger.live()) * _PLACE : _PLACE])

    def _others(self) -> list[int]:
        return [
            urgency
            for place in self._ledger.live()
            if place != self._ledger.place and (urgency := self._counts[place * _PLACE + 2])
        ]


class Bell:
    """A socket by which others have this gateway look at its queues."""

    def __init__(self, folder: Path, place: int) -> None:
        path = _bell(folder, place)
        path.unlink(missing_ok=True)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.bind(str(path))
        self.heard: list[Callable[[], None]] = []

    def hear(self) -> None:
        """To be called where the socket can be read."""
        with suppress(BlockingIOError):
            while self.socket.recv(64):
                pass
        for listener in self.heard:
            listener()


def _ring(folder: Path, place: int) -> bool:
    """Whether somebody is there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
        try:
            sender.sendto(b"!", str(_bell(folder, place)))
        except BlockingIOError:
            return True  # it has been rung so often that it will look
        except OSError:
            return False
    return True


def _bell(folder: Path, place: int) -> Path:
    return folder / f"text-{place}"


def _id(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little") or 1
