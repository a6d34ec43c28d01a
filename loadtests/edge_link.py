"""Networks of their own for servers on one machine, joined by links that delay and lose packets.

Each host is a network namespace, each link two TUN devices and a process that carries packets from
one to the other: later, not all of them, and none while the link is cut. What is lost is an IP
packet, so that TCP does what it does on a bad line. (Linux's own netem would do the same; not every
kernel has it.) All of it needs root.
"""

from __future__ import annotations

import fcntl
import heapq
import json
import os
import random
import select
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

TUN = Path("/dev/net/tun")
TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
PACKET = 65536
PREFIX = "dsedge"


def missing() -> str:
    """Why such networks cannot be made here; "" where they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not os.access(TUN, os.R_OK | os.W_OK):
        return f"there is no {TUN}"
    name = f"{PREFIX}{os.getpid()}try"
    try:
        tried = subprocess.run(
            ["ip", "netns", "add", name], capture_output=True, text=True, check=False
        )
    except OSError:
        return "the program ip (iproute2) is not installed"
    subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
    return tried.stderr.strip() if tried.returncode else ""


@dataclass(frozen=True)
class Host:
    """A network namespace."""

    namespace: str

    def command(self, command: Sequence[str]) -> list[str]:
        """The same command, run there."""
        return ["ip", "netns", "exec", self.namespace, *command]


@dataclass
class Passed:
    """What a link has carried so far, bytes of IP packets, and packets it has lost."""

    up: int = 0
    down: int = 0
    lost: int = 0


class Link:
    """Between two hosts, the second above the first. `delay` of each packet one way, in seconds;
    `loss`: the part of packets that is lost.
    """

    def __init__(self, process: subprocess.Popen[str], below: str, above: str) -> None:
        self._process = process
        self.below = below
        self.above = above

    def cut(self) -> None:
        self._say({"cut": True})

    def restore(self) -> None:
        self._say({"cut": False})

    def shape(self, delay: float, loss: float) -> None:
        self._say({"delay": delay, "loss": loss})

    def passed(self) -> Passed:
        return Passed(**self._say({}))

    def _say(self, order: dict[str, object]) -> dict[str, int]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer: dict[str, int] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


class Net:
    """Hosts and links, gone at the end of the `with` block."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._links = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def host(self, name: str) -> Host:
        namespace = f"{PREFIX}{os.getpid()}{name}"
        _ip("netns", "add", namespace)
        self._stack.callback(_ip, "netns", "delete", namespace)
        _ip("-n", namespace, "link", "set", "lo", "up")
        return Host(namespace)

    def link(self, below: Host, above: Host, delay: float, loss: float) -> Link:
        """Each host has an address of its own on each of its links: `below` and `above` there."""
        self._links += 1
        ends = tuple(f"10.77.{self._links}.{end}" for end in (1, 2))
        command = [sys.executable, str(Path(__file__).resolve()), str(self._links)]
        command += [below.namespace, above.namespace, *ends, str(delay), str(loss)]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        link = Link(process, *ends)
        self._stack.callback(link.close)
        link.passed()  # the devices are there
        return link

    def through(self, host: Host) -> None:
        """Have a host pass on what is for the hosts beyond it."""
        words = ["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]
        subprocess.run(host.command(words), check=True, capture_output=True)

    def beyond(self, host: Host, address: str) -> None:
        """Have a host send what is for `address` over its only link."""
        shown = subprocess.run(
            ["ip", "-n", host.namespace, "-brief", "link", "show", "type", "tun"],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        _ip("-n", host.namespace, "route", "add", address, "dev", shown.split()[0])


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


# The process of a link.


@dataclass
class _Side:
    device: int
    due: list[tuple[float, int, bytes]]
    passed: int = 0


class _Carrier:
    """Both directions. Packets keep their order, as each waits for the same time."""

    def __init__(self, below: int, above: int, delay: float, loss: float) -> None:
        self._sides = (_Side(below, []), _Side(above, []))
        self._delay, self._loss = delay, loss
        self._cut = False
        self._lost = self._number = 0
        self._random = random.Random(7)

    def run(self, orders: IO[bytes]) -> None:
        sources = [side.device for side in self._sides] + [orders.fileno()]
        while True:
            ready, _, _ = select.select(sources, [], [], self._wait())
            for side, other in (self._sides, self._sides[::-1]):
                if side.device in ready:
                    self._take(side, other)
                self._give(side)
            if orders.fileno() in ready:
                line = orders.readline()
                if not line:
                    return
                self._obey(json.loads(line))

    def _wait(self) -> float | None:
        due = [side.due[0][0] for side in self._sides if side.due]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _take(self, side: _Side, other: _Side) -> None:
        for _ in range(64):
            try:
                packet = os.read(side.device, PACKET)
            except BlockingIOError:
                return
            side.passed += len(packet)
            if self._cut or self._random.random() < self._loss:
                self._lost += 1
                continue
            self._number += 1
            heapq.heappush(other.due, (time.monotonic() + self._delay, self._number, packet))

    def _give(self, side: _Side) -> None:
        now = time.monotonic()
        while side.due and side.due[0][0] <= now:
            os.write(side.device, heapq.heappop(side.due)[2])

    def _obey(self, order: dict[str, float]) -> None:
        self._cut = bool(order.get("cut", self._cut))
        self._delay = order.get("delay", self._delay)
        self._loss = order.get("loss", self._loss)
        if self._cut:
            for side in self._sides:
                side.due.clear()
        up, down = (side.passed for side in self._sides)
        print(json.dumps({"up": up, "down": down, "lost": self._lost}), flush=True)


def _device(name: str, namespace: str, own: str, other: str) -> int:
    """A TUN device in that namespace; what is written to it arrives there."""
    device = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TUN | IFF_NO_PI))
    _ip("link", "set", name, "netns", namespace)
    _ip("-n", namespace, "address", "add", own, "peer", other, "dev", name)
    _ip("-n", namespace, "link", "set", name, "up")
    return device


def _carry(words: Sequence[str]) -> None:
    number, below, above, low, high, delay, loss = words
    name = f"{PREFIX[:4]}{os.getpid() % 100000}"
    devices = (
        _device(f"{name}b{number}", below, low, high),
        _device(f"{name}a{number}", above, high, low),
    )
    _Carrier(*devices, float(delay), float(loss)).run(sys.stdin.buffer)


if __name__ == "__main__":
    _carry(sys.argv[1:])
