"""Long prompts while others are answered, with chunked prefill and without."""

from __future__ import annotations

import math
import random
import re
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from statistics import median
from typing import Any

from loadtests.vllm import asking, shapes
from loadtests.vllm.plan import Plan
from loadtests.vllm.servers import Running, ds_serve

NAME = "llama"
OTHERS = 8
CHUNK = 2048
"""Tokens of a step with chunked prefill."""

TIMES = 3
POLL_SECONDS = 0.02
_USED = re.compile(r"^vllm:kv_cache_usage_perc\{.*\} (\S+)$", re.MULTILINE)
_SIZE = re.compile(r"KV cache size: ([\d,]+) tokens")


def run(plan: Plan) -> dict[str, Any]:
    """One server after the other: chunked prefill is chosen at the start."""
    prompts: list[dict[str, Any]] = []
    for chunked in (True, False):
        prompts += _measured(plan, chunked)
    return {
        "model": f"Llama shape, {shapes.parameters(plan.size):.1f} billion parameters",
        "others": OTHERS,
        "chunk_tokens": CHUNK,
        "prompts": prompts,
    }


def _measured(plan: Plan, chunked: bool) -> list[dict[str, Any]]:
    model = shapes.llama(plan.size, plan.tokenizer, plan.place.out)
    longest = max(plan.prompts) + 512
    flags = ["--load-format", "dummy", "--max-model-len", str(longest)]
    # What a prompt costs is asked: no part of it may be there already. A step of prefill needs no
    # captured graph, and the start is quicker without.
    flags += ["--no-enable-prefix-caching"]
    if plan.place.device == "cuda":
        flags += ["--enforce-eager", "--gpu-memory-utilization", "0.9"]
    if chunked:
        flags += ["--enable-chunked-prefill", "--max-num-batched-tokens", str(CHUNK)]
    else:
        flags += ["--no-enable-chunked-prefill", "--max-num-batched-tokens", str(longest)]
    with ds_serve(plan.place, NAME, model, (), flags) as server:
        _prompt(server, plan, min(plan.prompts))  # what is compiled at the first is no one's time
        return [_one(server, plan, tokens, chunked) for tokens in plan.prompts]


def _one(server: Running, plan: Plan, tokens: int, chunked: bool) -> dict[str, Any]:
    """First alone, for its time and its memory; then among others, for their gaps."""
    times = [_prompt(server, plan, tokens).first for _ in range(TIMES)]
    with _Usage(server) as usage:
        _prompt(server, plan, tokens, answer=32)
    gaps = _gaps(server, plan, tokens)
    size = _SIZE.findall(server.printed())[-1].replace(",", "")
    shape = shapes.SIZES[plan.size]
    each = 4 * shape["num_hidden_layers"] * shape["num_key_value_heads"] * shape["head_dim"]
    return {
        "tokens": tokens,
        "chunked": chunked,
        "ttft_ms": round(1000 * median(times), 1),
        "kv_used": round(usage.most, 6),
        "kv_mb": round(usage.most * int(size) * each / 1e6, 1),
        "kv_tokens": int(size),
        "gap_ms": round(1000 * gaps, 1),
    }


def _prompt(server: Running, plan: Plan, tokens: int, answer: int = 4) -> asking.Streamed:
    highest = min(shapes.SIZES[plan.size]["vocab_size"], 48_000) - 1
    words = random.Random(time.monotonic()).choices(range(100, highest), k=tokens)
    body = {"model": NAME, "prompt": words, "max_tokens": answer, "ignore_eos": True}
    seen = asking.stream(server.port, "/v1/completions", body)
    if seen.error:
        raise asking.Refused(500, seen.error)
    return seen


def _gaps(server: Running, plan: Plan, tokens: int) -> float:
    """The longest that others wait for a token while such a prompt is taken in; the median."""
    with ThreadPoolExecutor(OTHERS) as threads:
        done = threading.Event()
        asked = [threads.submit(_writing, server, plan, done) for _ in range(OTHERS)]
        time.sleep(1.0 if not plan.rehearsal else 3.0)
        _prompt(server, plan, tokens)
        done.set()
        found = sorted(each.result() for each in asked)
    return found[len(found) // 2]


def _writing(server: Running, plan: Plan, done: threading.Event) -> float:
    """The longest gap of an answer that is written until the other prompt is through."""
    body = {"model": NAME, "prompt": [101] * 16, "max_tokens": 400, "ignore_eos": True}
    times: list[float] = []
    while not done.is_set():
        times += asking.arrivals(server.port, "/v1/completions", body, done)
        times.append(float("nan"))  # between two answers is no gap
    gaps = [after - before for before, after in pairwise(times)]
    return max((gap for gap in gaps if not math.isnan(gap)), default=0.0)


class _Usage:
    """The most of the KV cache that is in use meanwhile, 0 to 1."""

    def __init__(self, server: Running) -> None:
        self.most = 0.0
        self._server = server
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._poll)

    def __enter__(self) -> _Usage:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _poll(self) -> None:
        while not self._over.wait(POLL_SECONDS):
            with urllib.request.urlopen(f"{self._server.url}/metrics", timeout=10) as answer:
                found = _USED.findall(answer.read().decode())
            self.most = max([self.most, *map(float, found)])
