"""The engine is killed under load: what the clients see, and when the service is back."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from loadtests.perf_analyzer import BenchmarkError
from loadtests.vllm import asking
from loadtests.vllm.asking import Streamed
from loadtests.vllm.plan import Plan
from loadtests.vllm.servers import Running, ds_serve, family

NAME = "smollm2"
ENGINE = "EngineCore"
LONG = 1500
UNDER_WAY_SECONDS = 2.0


def run(plan: Plan) -> dict[str, Any]:
    flags = ["--enforce-eager"] if plan.place.device == "cuda" else []
    if plan.place.device == "cuda":
        flags += ["--gpu-memory-utilization", "0.3"]
    with ds_serve(plan.place, NAME, plan.smollm2, ("--max-seq-len", "2048"), flags) as server:
        found = _killed(plan, server)
        pid = server.process.pid
        found["processes_before"] = len(family(pid))
    time.sleep(1)
    found["left_after_stop"] = [name for name in family(1).values() if "VLLM::" in name]
    return found | {"start_s": round(server.started, 1)}


def _killed(plan: Plan, server: Running) -> dict[str, Any]:
    """Half of the requests are streamed."""
    with ThreadPoolExecutor(plan.clients) as threads:
        asked = [threads.submit(_ask, server, at % 2 == 0) for at in range(plan.clients)]
        time.sleep(UNDER_WAY_SECONDS)
        engines = [pid for pid, name in family(server.process.pid).items() if ENGINE in name]
        if not engines:
            raise BenchmarkError(f"no process of {server.name} is called {ENGINE}")
        done_before = sum(each.done() for each in asked)
        killed = time.monotonic()
        for pid in engines:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        outcomes = [_outcome(each) for each in asked]
        failed_within = time.monotonic() - killed
    back = _back(plan, server, killed)
    return {
        "in_flight": plan.clients - done_before,
        "errors": sum(kind != "whole" for kind, _ in outcomes),
        "silent": sum(kind == "cut" for kind, _ in outcomes),
        "all_failed_within_s": round(failed_within, 2),
        "said": sorted({said for _, said in outcomes})[:4],
        "back_after_s": round(back, 1),
        "good": all(kind in ("error", "whole") for kind, _ in outcomes) and back > 0,
    }


def _ask(server: Running, streamed: bool) -> Streamed | Exception:
    body = {
        "model": NAME,
        "prompt": "Once upon a time",
        "max_tokens": LONG,
        "ignore_eos": True,
        "temperature": 1.0,
    }
    try:
        if streamed:
            return asking.stream(server.port, "/v1/completions", body)
        answer = asking.post(server.port, "/v1/completions", body)
        return Streamed(text=answer["choices"][0]["text"], finish="length")
    except (asking.Refused, OSError) as error:
        return error


def _outcome(asked: Future[Streamed | Exception]) -> tuple[str, str]:
    """`error`: the client was told; `whole`: it had been answered; `cut`: neither."""
    found = asked.result()
    if isinstance(found, asking.Refused):
        return "error", str(found)
    if isinstance(found, Exception):
        return "cut", f"{type(found).__name__}: {found}"
    if found.error:
        return "error", found.error
    return ("whole", "") if found.finish else ("cut", "the stream ended without a word")


def _back(plan: Plan, server: Running, since: float) -> float:
    """Seconds until a request is answered again; -1 where the time is over before."""
    body = {"model": NAME, "prompt": "Hello", "max_tokens": 4}
    while plan.place.left > 0:
        server.check()
        with contextlib.suppress(asking.Refused, OSError):
            asking.post(server.port, "/v1/completions", body)
            return time.monotonic() - since
        time.sleep(0.25)
    return -1.0
