"""locust's users. What they do comes with the run, from the master too, as one JSON text."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Iterator
from typing import Any, ClassVar

import gevent  # type: ignore[import-untyped]
import msgspec
from locust import User, constant_throughput, task
from locust.env import Environment

from loadtests.load.callers import CALLERS, Caller, Failed, Refused
from loadtests.load.chat import Answer, Chat
from loadtests.load.scenario import Protocol, module

FIRST_TOKEN = "time to first token"
BETWEEN_TOKENS = "inter-token latency"
TOKENS = "tokens/s of one answer"
"""The value of this entry is no time; its bytes are the tokens of all answers."""
CHECKED = "answers checked"
REFUSED = "refused"

WORKER_SEEDS = 1_000_000
"""Between the seeds of one locust worker's users and of the next one's."""


class Plan(msgspec.Struct, frozen=True):
    """All that a user has to know. `pace` is in requests a second of one user, or None."""

    protocol: Protocol
    requests: str
    http: str
    grpc: str
    model: str
    pace: float | None
    timeout: float
    check: int

    @property
    def address(self) -> str:
        return self.grpc if self.protocol.startswith("grpc") else self.http


_FIRST = threading.Lock()
"""Held while a user makes its first request: what all share is then made once, not by each."""


class Asking(User):
    """What all users share: pace, seeds, and what is counted."""

    abstract = True
    seeds: ClassVar[Iterator[int]] = itertools.count()

    def on_start(self) -> None:
        self.plan: Plan = msgspec.json.decode(self.environment.parsed_options.load_plan, type=Plan)
        worker = max(0, getattr(self.environment.runner, "worker_index", 0))
        self.seed = worker * WORKER_SEEDS + next(self.seeds)
        self.sent = 0
        self._paced = constant_throughput(self.plan.pace) if self.plan.pace else None
        with _FIRST:
            self.prepare(module(self.plan.requests))
        if self.plan.pace:
            gevent.sleep(random.random() / self.plan.pace)

    def wait_time(self) -> float:
        return float(self._paced(self)) if self._paced else 0.0

    def prepare(self, made_by: Any) -> None:
        raise NotImplementedError

    def due(self) -> bool:
        """Whether the answer to this request is one of those that are checked."""
        self.sent += 1
        return (self.sent - 1 + self.seed) % self.plan.check == 0 or self.sent == 1

    def answered(self, begun: float, ended: float, error: Exception | None, size: int = 0) -> None:
        """Count a request that was not refused."""
        self.environment.events.request.fire(
            request_type=self.plan.protocol,
            name=self.plan.model,
            response_time=(ended - begun) * 1e3,
            response_length=size,
            exception=error,
        )

    def note(self, name: str, value: float, size: int = 0) -> None:
        """Count into an entry of its own, apart from the requests' total."""
        self.environment.stats.get(name, self.plan.protocol).log(value, size)

    def refused(self, begun: float, refusal: Refused) -> None:
        """Count, and wait as asked unless there is a pace to keep."""
        self.note(REFUSED, (time.perf_counter() - begun) * 1e3)
        if not self.plan.pace:
            gevent.sleep(refusal.retry_after)


class TensorUser(Asking):
    """Sends tensors and gets tensors, over any of the tensor protocols."""

    def prepare(self, made_by: Any) -> None:
        self._requests = _begun(made_by.requests(self.seed))
        self._check = made_by.check
        caller = CALLERS[self.plan.protocol]
        self._caller: Caller = caller(self.plan.address, self.plan.model, self.plan.timeout)

    @task
    def ask(self) -> None:
        inputs = next(self._requests)
        request = self._caller.prepare(inputs)
        due = self.due()
        begun = time.perf_counter()
        try:
            answer = self._caller.send(request)
        except Refused as refusal:
            self.refused(begun, refusal)
        except Failed as error:
            self.answered(begun, time.perf_counter(), error)
        else:
            ended = time.perf_counter()
            self.answered(begun, ended, self._wrong(inputs, answer) if due else None)

    def on_stop(self) -> None:
        self._caller.close()

    def _wrong(self, inputs: Any, answer: Any) -> Failed | None:
        begun = time.perf_counter()
        try:
            complaint = self._check(inputs, self._caller.read(answer))
        except Exception as error:
            complaint = f"it cannot be read: {type(error).__name__}: {error}"
        self.note(CHECKED, (time.perf_counter() - begun) * 1e3)
        return Failed(f"wrong answer: {complaint}") if complaint else None


class ChatUser(Asking):
    """Asks for streamed chat completions."""

    def prepare(self, made_by: Any) -> None:
        self._prompts = _begun(made_by.prompts(self.seed))
        self._check = made_by.check
        self._chat = Chat(self.plan.address, self.plan.model, self.plan.timeout)

    @task
    def ask(self) -> None:
        prompt = next(self._prompts)
        begun = time.perf_counter()
        try:
            answer = self._chat.send(prompt)
        except Refused as refusal:
            self.refused(begun, refusal)
        except Failed as error:
            self.answered(begun, time.perf_counter(), error)
        else:
            ended = time.perf_counter()
            self._count(answer)
            self.answered(begun, ended, self._wrong(prompt, answer), answer.tokens)

    def on_stop(self) -> None:
        self._chat.close()

    def _count(self, answer: Answer) -> None:
        self.note(FIRST_TOKEN, answer.first)
        for gap in answer.gaps:
            self.note(BETWEEN_TOKENS, gap)
        if answer.rate is not None:
            self.note(TOKENS, answer.rate, answer.tokens)

    def _wrong(self, prompt: dict[str, Any], answer: Answer) -> Failed | None:
        complaint = self._check(prompt, answer.text, answer.tokens)
        self.note(CHECKED, 0.0)
        return Failed(f"wrong answer: {complaint}") if complaint else None


def _begun(requests: Iterator[Any]) -> Iterator[Any]:
    """The same, with the first one made."""
    return itertools.chain([next(requests)], requests)


USERS: tuple[type[Asking], ...] = (TensorUser, ChatUser)


def user_of(protocol: Protocol) -> type[Asking]:
    return ChatUser if protocol == "chat" else TensorUser


def environment(users: tuple[type[Asking], ...], stop_timeout: float) -> Environment:
    """locust's environment for these users, which finish what they have begun when stopped."""
    return Environment(user_classes=list(users), stop_timeout=stop_timeout)
