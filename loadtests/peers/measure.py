"""The measurements: each server in turn, round after round, over each protocol."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loadtests import direct, perf_analyzer
from loadtests.peers import processes, workloads, wrk
from loadtests.peers.base import Peer
from loadtests.peers.results import IN_PROCESS, Crash, Key, Refusal, Results, Sample
from loadtests.peers.serving import Example, Place, Served, example, serving
from loadtests.peers.workloads import Workload
from loadtests.perf_analyzer import BenchmarkError, Stuck

CEILING = "ONNX Runtime"
CONNECTIONS = (1, 16, 64)
WARM_CONNECTIONS = 16
SETTLE_SECONDS = 10.0
IDLE_SECONDS = 0.25
IDLE_SHARE = 0.25
CRASH_SECONDS = 0.5
TRIES = 2


@dataclass(frozen=True)
class Plan:
    """What to measure and how long. `protocols` empty: those of each workload."""

    peers: Sequence[Peer]
    works: Sequence[Workload]
    protocols: tuple[str, ...] = ()
    connections: tuple[int, ...] = CONNECTIONS
    repeats: int = 5
    seconds: float = 5.0
    warm_up: float = 2.0
    place: Place = field(default_factory=Place)
    client_cores: frozenset[int] | None = None

    @property
    def cores(self) -> frozenset[int]:
        """All that servers and clients may use."""
        ours = frozenset(os.sched_getaffinity(0))
        return (self.place.pinned or ours) | (self.client_cores or ours)

    def protocols_of(self, peer: Peer, work: Workload) -> list[str]:
        return [each for each in self.protocols or work.protocols if each in peer.protocols]

    def steps(self) -> int:
        """How many measurements there are."""
        pairs = [(peer, work) for peer in self.peers for work in self.works]
        each = sum(len(self.protocols_of(peer, work)) for peer, work in pairs) + len(self.works)
        return each * len(self.connections) * self.repeats


@dataclass(frozen=True)
class Tools:
    """The load generators. `kserve`, perf_analyzer, is None where no protocol needs it."""

    http: wrk.Wrk
    kserve: perf_analyzer.Tool | None

    def load(
        self, served: Served, work: Workload, protocol: str, connections: int, seconds: float
    ) -> wrk.Load:
        """Raises BenchmarkError where a request fails."""
        if protocol in served.requests:
            return self.http.measure(served.http, served.requests[protocol], connections, seconds)
        if self.kserve is None:
            raise BenchmarkError(f"{protocol}: perf_analyzer is not there")
        address = served.http if protocol.startswith("HTTP") else served.grpc
        before = served.counted(work.name)
        point = self.kserve.measure(protocol, address, work.name, connections, seconds, served.data)
        after = served.counted(work.name)
        if before is None or after is None:
            return wrk.Load(point, None)
        succeeded, failed = after[0] - before[0], after[1] - before[1]
        if failed or not succeeded:
            raise BenchmarkError(f"{failed} requests failed, {succeeded} did not")
        return wrk.Load(point, succeeded)


def find(plan: Plan) -> Tools:
    """Raises BenchmarkError saying what to install."""
    pairs = [(peer, work) for peer in plan.peers for work in plan.works]
    wanted = {each for peer, work in pairs for each in plan.protocols_of(peer, work)}
    needed = wanted & {*perf_analyzer.PROTOCOLS, *perf_analyzer.SHARED_MEMORY}
    return Tools(wrk.find(), perf_analyzer.find() if needed else None)


@dataclass(frozen=True)
class Job:
    """A workload's file, and a row with what it makes of it."""

    work: Workload
    path: Path
    expected: Example


class Runner:
    """One run of a plan. What fails once is refused and not tried again.

    `advance` is called for each measurement that is done or given up, with the server's name, and
    `keep` after each round.
    """

    def __init__(
        self,
        plan: Plan,
        tools: Tools,
        advance: Callable[[str], None],
        keep: Callable[[], None] = lambda: None,
    ) -> None:
        self.results = Results({}, [], [])
        self._plan = plan
        self._tools = tools
        self._advance = advance
        self._keep = keep

    def run(self, folder: Path) -> None:
        """All rounds of all workloads; their files go into `folder`."""
        for work in self._plan.works:
            path = workloads.write(work, folder)
            job = Job(work, path, example(work, path))
            for _ in range(self._plan.repeats):
                self._ceiling(job)
                for peer in self._plan.peers:
                    self._peer(job, peer)
                self._keep()

    def _ceiling(self, job: Job) -> None:
        """The engine with no server around it, so many rows a call."""
        for rows in self._plan.connections:
            key = Key(job.work.name, CEILING, IN_PROCESS, rows)
            if not self.results.refused(key):
                try:
                    self.results.samples.setdefault(key, []).append(self._direct(job, rows))
                except BenchmarkError as error:
                    self._refuse(Refusal(key.workload, key.server, None, str(error)))
            self._advance(CEILING)

    def _direct(self, job: Job, rows: int) -> Sample:
        place = self._plan.place
        meter = Meter(self._plan.cores)
        with processes.pinned(place.pinned):
            seconds = self._plan.seconds * job.work.stretch
            point = direct.measure(job.path, rows, seconds, place.cores)
        return Sample(point.rate, point.p50, point.p99, None, None, meter.others(0))

    def _peer(self, job: Job, peer: Peer) -> None:
        """One round of a server; it is started again where a measurement ends it."""
        keys = self._keys(job, peer)
        steps, fruitless = [key for key in keys if not self.results.refused(key)], 0
        while steps:
            left, up = len(steps), False
            try:
                with serving(peer, job.work, job.path, job.expected, self._plan.place) as served:
                    up = True
                    self._measure(job, served, steps)
            except BenchmarkError as error:
                if not up:
                    self._refuse(Refusal(job.work.name, peer.name, None, str(error)))
                    break
                self.results.crashes.append(Crash(job.work.name, peer.name, str(error)))
                fruitless = fruitless + 1 if len(steps) == left else 0
                if steps and fruitless >= TRIES:
                    self._give_up(steps.pop(0), str(error))
                    fruitless = 0
        for _ in keys:
            self._advance(peer.name)

    def _keys(self, job: Job, peer: Peer) -> list[Key]:
        return [
            Key(job.work.name, peer.name, protocol, connections)
            for protocol in self._plan.protocols_of(peer, job.work)
            for connections in self._plan.connections
        ]

    def _measure(self, job: Job, served: Served, steps: list[Key]) -> None:
        """Take the steps away as they are done. Raises ServerEnded, Stuck."""
        warm = ""
        while steps:
            key = steps[0]
            try:
                with processes.pinned(self._plan.client_cores):
                    settle(served)
                    if key.protocol != warm:
                        self._load(job, served, key, WARM_CONNECTIONS, self._plan.warm_up)
                        warm = key.protocol
                    sample = self._sample(job, served, key)
                self.results.samples.setdefault(key, []).append(sample)
                del steps[0]
            except Stuck:
                raise
            except BenchmarkError as error:
                time.sleep(CRASH_SECONDS)
                served.processes.check()
                self._give_up(steps.pop(0), str(error))
        time.sleep(CRASH_SECONDS)
        served.processes.check()

    def _load(
        self, job: Job, served: Served, key: Key, connections: int, seconds: float
    ) -> wrk.Load:
        return self._tools.load(served, job.work, key.protocol, connections, seconds)

    def _sample(self, job: Job, served: Served, key: Key) -> Sample:
        settle(served)
        meter = Meter(self._plan.cores)
        before = served.processes.cpu_seconds()
        seconds = self._plan.seconds * job.work.stretch
        load = self._load(job, served, key, key.at_once, seconds)
        used = served.processes.cpu_seconds() - before
        others = meter.others(used)
        cpu = used / load.requests * 1000 if load.requests else None
        point, memory = load.point, served.processes.memory()
        return Sample(point.rate, point.p50, point.p99, cpu, memory, others)

    def _give_up(self, key: Key, why: str) -> None:
        self._refuse(Refusal(key.workload, key.server, key.protocol, why, key.at_once))

    def _refuse(self, refusal: Refusal) -> None:
        self.results.refusals.append(refusal)


def settle(served: Served) -> None:
    """Wait until nothing is left of the requests that the last load did not wait for."""
    until = time.monotonic() + SETTLE_SECONDS
    used = served.processes.cpu_seconds()
    while time.monotonic() < until:
        time.sleep(IDLE_SECONDS)
        now = served.processes.cpu_seconds()
        if now - used < IDLE_SECONDS * IDLE_SHARE:
            return
        used = now


class Meter:
    """What other programs took of these cores since it was made."""

    def __init__(self, cores: frozenset[int] = processes.ALL_CORES) -> None:
        self._cores = cores
        self._begun = time.monotonic()
        self._busy = processes.busy_seconds(cores)
        self._ours = _ours()

    def others(self, server: float) -> float:
        """0 to 1, given the CPU seconds that the server had; the client's are known."""
        elapsed = time.monotonic() - self._begun
        used = processes.busy_seconds(self._cores) - self._busy
        rest = used - (_ours() - self._ours) - server
        return max(0.0, rest / elapsed / len(self._cores))


def _ours() -> float:
    """CPU seconds of this process and of those it has waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
