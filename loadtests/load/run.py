"""One run: users up and down as the shape says, on this process or on locust's workers."""

from __future__ import annotations

import math
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass

import gevent  # type: ignore[import-untyped]
import msgspec
from locust import LoadTestShape
from locust.env import Environment
from locust.rpc.protocol import Message
from locust.runners import MasterRunner, Runner
from locust.stats import StatsEntry, update_stats_history

from loadtests.load import shapes
from loadtests.load.memory import Sampler, Slope
from loadtests.load.scenario import Scenario, ScenarioError
from loadtests.load.users import (
    BETWEEN_TOKENS,
    CHECKED,
    FIRST_TOKEN,
    REFUSED,
    USERS,
    Plan,
    environment,
    user_of,
)

TURN_SECONDS = 0.25
MEMORY_SECONDS = 5.0
LAST_REPORTS_SECONDS = 10.0
FORGET, FORGET_SECONDS = "forget", 0.3
"""The message to workers that what they have counted does not count, and the time it may take."""
BUSY_PERCENT = 90.0
"""Of one core: a process of users that is so busy is slower than what it measures."""

Say = Callable[[str], None]


class Shape(LoadTestShape):
    """The scenario's shape as locust asks for it; users come and go within a second."""

    def __init__(self, scenario: Scenario) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._scenario = scenario
        self.begun: float | None = None

    def reset_time(self) -> None:
        """locust calls this when the users of the first moment are about to start."""
        super().reset_time()  # type: ignore[no-untyped-call]
        self.begun = time.time()

    def tick(self) -> tuple[int, float]:
        """Never ends by itself: the run ends it, so that what is under way is counted."""
        one = self._scenario
        seconds: float = self.get_run_time()  # type: ignore[no-untyped-call]
        passed = min(1.0, seconds / one.seconds)
        return shapes.users(one.shape, passed, one.low_share, one.users), float(one.users)


@dataclass
class Outcome:
    """What was seen: figures by threshold, and what should be known beside them."""

    figures: dict[str, float]
    answered: int
    checked: int
    seconds: float
    errors: list[tuple[int, str]]
    problems: list[str]
    busiest: float
    memory: Slope | None
    memory_mib: tuple[float, float] | None


class LoadRun:
    """A load test under way."""

    def __init__(
        self, scenario: Scenario, plan: Plan, sampler: Sampler | None = None, say: Say = print
    ) -> None:
        self._scenario, self._sampler, self._say = scenario, sampler, say
        self.environment: Environment = environment((user_of(scenario.protocol),), scenario.timeout)
        self.environment.shape_class = self._shape = Shape(scenario)
        self.environment.host = plan.address
        self.environment.parsed_options = Namespace(
            load_plan=msgspec.json.encode(plan).decode(), headless=False, enable_rebalancing=False
        )
        self._runner: Runner | None = None
        self._busiest = 0.0
        self._problems: list[str] = []

    def here(self) -> None:
        """Users in this process."""
        self._runner = self.environment.create_local_runner()

    def spread(self, host: str, port: int, workers: int, seconds: float) -> None:
        """Users in `workers` other processes, which are waited for. Raises ScenarioError."""
        runner = self.environment.create_master_runner(host, port)
        self._runner = runner
        until = time.monotonic() + seconds
        while len(runner.clients.ready) < workers:
            if time.monotonic() > until:
                came = len(runner.clients.ready)
                runner.quit()
                raise ScenarioError(f"{came} of {workers} workers came within {seconds:.0f} s")
            gevent.sleep(0.1)

    @property
    def runner(self) -> Runner:
        if self._runner is None:
            raise RuntimeError("neither here() nor spread() was called")
        return self._runner

    def measure(self) -> Outcome:
        """Run it to its end."""
        runner, one = self.runner, self._scenario
        workers = len(runner.clients) if isinstance(runner, MasterRunner) else 0
        runner.start_shape()
        try:
            self._until(one.uncounted)
            self._forget()
            counted_from, used = time.time(), time.process_time()
            self._until(one.seconds)
            ended = time.time()
            if not workers:
                self._busiest = 100 * (time.process_time() - used) / (ended - counted_from)
            if isinstance(runner, MasterRunner) and runner.worker_count < workers:
                self._problems.append(f"{workers - runner.worker_count} of {workers} workers died")
        finally:
            self._stop()
        return self._outcome(counted_from, ended)

    def _until(self, seconds: float) -> None:
        """Wait until so long after the start, watching."""
        length = self._scenario.seconds
        watched: list[_Watch] = [
            _Watch(max(1.0, length / 300), lambda: update_stats_history(self.runner)),
            _Watch(max(10.0, length / 20), lambda: self._say(self._line())),
        ]
        if self._sampler:
            every = min(MEMORY_SECONDS, max(0.5, length / 20))
            watched.append(_Watch(every, self._sampler.sample))
        if isinstance(self.runner, MasterRunner):
            watched.append(_Watch(1.0, self._note_busiest))
        while self._shape.begun is None or time.time() < self._shape.begun + seconds:
            gevent.sleep(TURN_SECONDS)
            for each in watched:
                each.look()

    def _note_busiest(self) -> None:
        if isinstance(self.runner, MasterRunner):
            used = (client.cpu_usage for client in self.runner.clients.all)
            self._busiest = max(self._busiest, *used, 0.0)

    def _forget(self) -> None:
        """Count from now on, in all processes."""
        runner = self.runner
        if isinstance(runner, MasterRunner):
            runner.send_message(FORGET)
            gevent.sleep(FORGET_SECONDS)
        runner.stats.reset_all()

    def _line(self) -> str:
        total = self.runner.stats.total
        passed = time.time() - (self._shape.begun or time.time())
        return (
            f"{passed:6.0f} s  {self.runner.user_count:5d} users  {total.current_rps:8,.0f}/s  "
            f"p99 {total.get_current_response_time_percentile(0.99) or 0:6.0f} ms  "
            f"{total.num_failures} failed"
        )

    def _stop(self) -> None:
        """Users finish what they have begun; workers send what they have counted last."""
        runner = self.runner
        if isinstance(runner, MasterRunner):
            if runner.shape_greenlet is not None:
                runner.shape_greenlet.kill(block=True)
                runner.shape_greenlet = None
            runner.final_user_classes_count = dict(runner.reported_user_classes_count)
            for client in runner.clients.all:
                quit_now = Message("quit", None, client.id)  # type: ignore[no-untyped-call]
                runner.server.send_to_client(quit_now)
            until = time.monotonic() + self._scenario.timeout + LAST_REPORTS_SECONDS
            while runner.user_count and time.monotonic() < until:
                gevent.sleep(0.1)
        runner.quit()

    def _outcome(self, counted_from: float, ended: float) -> Outcome:
        runner, stats = self.runner, self.runner.stats
        self._problems += [
            f"the load test itself failed: {each['msg']} ({each['traceback'].strip()[-300:]})"
            for each in runner.exceptions.values()
        ]
        errors = sorted(
            ((e.occurrences, str(e.error)) for e in stats.errors.values()), reverse=True
        )
        slope = self._sampler.slope() if self._sampler else None
        sizes = self._sampler.sizes if self._sampler else []
        checked = self._entry(CHECKED).num_requests
        answered = stats.total.num_requests - stats.total.num_failures
        if not answered:
            self._problems.append("no request was answered")
        elif not checked:
            self._problems.append("no answer was checked")
        return Outcome(
            figures=self._figures(counted_from, ended) | _memory_figure(slope),
            answered=answered,
            checked=checked,
            seconds=ended - counted_from,
            errors=errors,
            problems=self._problems,
            busiest=self._busiest,
            memory=slope,
            memory_mib=(sizes[0], sizes[-1]) if sizes else None,
        )

    def _entry(self, name: str) -> StatsEntry:
        return self.runner.stats.get(name, self._scenario.protocol)

    def _figures(self, counted_from: float, ended: float) -> dict[str, float]:
        total = self.runner.stats.total
        refused = self._entry(REFUSED).num_requests
        accepted = total.num_requests
        figures = {"rate": self._rate(counted_from, ended)}
        if accepted:
            figures["failed"] = total.num_failures / accepted
            figures["refused"] = refused / (accepted + refused)
            figures |= _percentiles("", total)
        if self._scenario.protocol == "chat":
            figures["tokens"] = total.total_content_length / (ended - counted_from)
            figures |= _percentiles("ttft_", self._entry(FIRST_TOKEN))
            figures |= _percentiles("itl_", self._entry(BETWEEN_TOKENS))
        return figures

    def _rate(self, counted_from: float, ended: float) -> float:
        """Right answers a second, over the whole seconds of full load that counted."""
        one, total = self._scenario, self.runner.stats.total
        start, end = shapes.counted(one.shape, one.seconds, one.uncounted)
        begun = self._shape.begun or counted_from
        # A second for the users of a step to come; the last second is not whole.
        first, last = math.ceil(begun + start) + (start > one.uncounted), math.floor(begun + end)
        first = max(first, math.ceil(counted_from))  # later where users took long to come
        if last - first < 2:
            return float(total.num_requests - total.num_failures) / (ended - counted_from)
        asked = sum(total.num_reqs_per_sec.get(second, 0) for second in range(first, last))
        failed = sum(total.num_fail_per_sec.get(second, 0) for second in range(first, last))
        return float(asked - failed) / (last - first)


class _Watch:
    """Something to be done every so many seconds."""

    def __init__(self, every: float, do: Callable[[], object]) -> None:
        self._every, self._do = every, do
        self._next = time.monotonic() + every

    def look(self) -> None:
        """Do it if it is time."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + self._every
            self._do()


def work(host: str, port: int) -> int:
    """Be a worker of the master at host and port until it says that the run is over."""
    env = environment(USERS, stop_timeout=0)
    env.parsed_options = Namespace(web_base_path="")
    try:
        runner = env.create_worker_runner(host, port)
    except ConnectionError:
        raise ScenarioError(f"no master of a load test answers at {host}:{port}") from None
    runner.register_message(FORGET, lambda environment, **_: environment.stats.reset_all())
    runner.greenlet.join()
    return 0


def _percentiles(prefix: str, entry: StatsEntry) -> dict[str, float]:
    if not entry.num_requests:
        return {}
    shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
    return {prefix + n: float(entry.get_response_time_percentile(s)) for n, s in shares.items()}


def _memory_figure(slope: Slope | None) -> dict[str, float]:
    return {"memory_slope": slope.slope} if slope else {}
