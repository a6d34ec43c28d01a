"""What serving takes from the CPU text engine: OpenVINO's pipeline alone, and through the server.

    python -m loadtests.text_overhead                      32 clients, five rounds
    python -m loadtests.text_overhead --clients 8 --write  into docs/text-openvino.md

Each round measures the pipeline called directly, by a program that does nothing else, and the
same prompts through the gateway, whole and streamed; one after the other, in changing order, on
the same cores. As many answers are always in flight, all of the same length. The shares are the
medians of the rounds' own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import aiohttp
from rich.console import Console
from rich.table import Table

from loadtests import report
from loadtests.peers.text.client import WORDS
from loadtests.perf_analyzer import BenchmarkError
from loadtests.server import running
from loadtests.start_up.subjects import fetched

MODEL = "smollm2-135m-instruct"
PAGE = Path(__file__).resolve().parents[1] / "docs" / "text-openvino.md"
WAYS = ("direct", "whole", "streamed")
INTERRUPTED = 130
LEAST = 0.95
"""Of the direct rate, for whole answers."""

Rates = dict[str, list[float]]


@dataclass(frozen=True)
class Plan:
    """`answers` for each client and round; prompts and answers of so many tokens."""

    clients: int = 32
    rounds: int = 5
    answers: int = 3
    tokens_in: int = 64
    tokens_out: int = 64

    @property
    def total(self) -> int:
        return self.clients * self.answers

    def prompts(self, seed: int) -> list[str]:
        """Texts of about `tokens_in` tokens, no two alike."""
        chance = random.Random(seed)
        return [" ".join(chance.choices(WORDS, k=self.tokens_in)) for _ in range(self.total)]


def direct(plan: Plan) -> None:
    """The pipeline alone: for each seed on stdin the tokens a second, as a line on stdout."""
    from ds_engines.openvino_model import check_artifact
    from ds_engines.openvino_sampling import Sampling, TextConfig, generation_config, pipeline
    from ds_engines.openvino_tokenizer import TextTokenizer

    info = check_artifact(fetched(MODEL))
    tokenizer = TextTokenizer(info)
    config = TextConfig(info.path, threads=cores())
    made = pipeline(config, 1400, info.cache, None)
    wanted = Sampling(max_tokens=plan.tokens_out, temperature=0, ignore_eos=True)
    setting = generation_config(wanted, info.stops)
    print("ready", flush=True)
    for line in sys.stdin:
        ids = [tokenizer.encode(prompt) for prompt in plan.prompts(int(line))]
        print(_driven(made, ids, setting, plan.clients), flush=True)


def _driven(made: Any, prompts: list[list[int]], setting: Any, clients: int) -> float:
    import numpy as np
    import openvino

    begun = time.perf_counter()
    waiting = iter(enumerate(prompts))
    handles: list[Any] = []
    tokens = 0
    while True:
        while len(handles) < clients and (pair := next(waiting, None)) is not None:
            tensor = openvino.Tensor(np.array([pair[1]], dtype=np.int64))
            handles.append(made.add_request(pair[0], tensor, setting))
        if not handles:
            return tokens / (time.perf_counter() - begun)
        made.step()
        for handle in list(handles):
            while handle.can_read():
                for output in handle.read().values():
                    tokens += len(output.generated_ids)
                    if output.finish_reason.name != "NONE":
                        handles.remove(handle)


def cores() -> int:
    return len(os.sched_getaffinity(0))


class Direct:
    """That program, as a child."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._in: IO[str] = process.stdin
        self._out: IO[str] = process.stdout
        if self._out.readline().strip() != "ready":
            raise BenchmarkError("the pipeline alone did not start")

    def rate(self, seed: int) -> float:
        print(seed, file=self._in, flush=True)
        said = self._out.readline()
        if not said:
            raise BenchmarkError("the pipeline alone ended")
        return float(said)


@contextmanager
def directly(arguments: Sequence[str]) -> Iterator[Direct]:
    command = [sys.executable, "-m", "loadtests.text_overhead", "--direct", *arguments]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield Direct(process)
        finally:
            process.kill()


async def served(url: str, plan: Plan, seed: int, stream: bool) -> float:
    """Tokens a second through the server. Raises BenchmarkError."""
    prompts = iter(plan.prompts(seed))
    body = {
        "model": MODEL,
        "max_tokens": plan.tokens_out,
        "temperature": 0,
        "ignore_eos": True,
        "stream": stream,
    }
    if stream:
        body["stream_options"] = {"include_usage": True}
    tokens: list[int] = []

    async def client(session: aiohttp.ClientSession) -> None:
        for prompt in prompts:
            async with session.post(url, json=body | {"prompt": prompt}) as answer:
                if answer.status != 200:
                    raise BenchmarkError(f"status {answer.status}: {await answer.text()}")
                tokens.append(await _tokens(answer, stream))

    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        begun = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(plan.clients):
                group.create_task(client(session))
        return sum(tokens) / (time.perf_counter() - begun)


async def _tokens(answer: aiohttp.ClientResponse, stream: bool) -> int:
    """As the server counts them; of a stream only the last event but one is looked into."""
    if not stream:
        return int((await answer.json())["usage"]["completion_tokens"])
    last = b""
    async for line in answer.content:
        if line.startswith(b"data: {"):
            last = line
    return int(json.loads(last[6:])["usage"]["completion_tokens"])


def measured(plan: Plan, arguments: Sequence[str], console: Console) -> Rates:
    """All rounds, after one that does not count."""
    rates: Rates = {way: [] for way in WAYS}
    with (
        running(f"{MODEL}={MODEL}", ["--log-level", "warning"]) as server,
        directly(arguments) as alone,
    ):
        url = f"http://{server.http}/v1/completions"
        for round_ in range(plan.rounds + 1):
            order = random.Random(round_).sample(WAYS, len(WAYS))
            for way in order:
                # Other prompts each time: a prefix that is known would be no work.
                seed = 10 * round_ + WAYS.index(way)
                if way == "direct":
                    rate = alone.rate(seed)
                else:
                    rate = asyncio.run(served(url, plan, seed, way == "streamed"))
                if round_:
                    rates[way].append(rate)
                console.print(f"round {round_}: {way} {rate:,.0f} tokens/s", highlight=False)
    return rates


def shares(rates: Rates, way: str) -> list[float]:
    """Of the direct rate, round by round."""
    return [rate / base for rate, base in zip(rates[way], rates["direct"], strict=True)]


COLUMNS = ("what", "tokens/s", "lowest to highest", "of the pipeline alone", "lowest to highest")
NAMES = {
    "direct": "the pipeline called directly",
    "whole": "through the gateway, whole answers",
    "streamed": "through the gateway, streamed",
}


def rows(rates: Rates) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for way in WAYS:
        each, of = rates[way], shares(rates, way)
        found.append(
            (
                NAMES[way],
                f"{statistics.median(each):,.0f}",
                f"{min(each):,.0f} to {max(each):,.0f}",
                f"{statistics.median(of):.1%}",
                f"{min(of):.1%} to {max(of):.1%}",
            )
        )
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    given = _arguments(arguments)
    plan = Plan(given.clients, given.rounds, given.answers, given.tokens_in, given.tokens_out)
    if given.direct:
        direct(plan)
        return 0
    console = Console()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    words = [f"--{name.replace('_', '-')}={value}" for name, value in vars(plan).items()]
    try:
        rates = measured(plan, words, console)
    except BenchmarkError as error:
        console.print(str(error), style="red", markup=False)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    shown = Table(*COLUMNS, title=f"{MODEL}, {plan.clients} clients")
    for row in rows(rates):
        shown.add_row(*row)
    console.print(shown)
    if given.write:
        _write(plan, rates)
    share = statistics.median(shares(rates, "whole"))
    if share < LEAST:
        console.print(f"whole answers keep {share:.1%}, below {LEAST:.0%}", style="red")
        return 1
    return 0


def _write(plan: Plan, rates: Rates) -> None:
    lines = [COLUMNS, ("---", *["---:"] * (len(COLUMNS) - 1)), *rows(rates)]
    about = (
        f"{report.machine({})} {MODEL}, {plan.clients} clients, {plan.tokens_in} words in and "
        f"{plan.tokens_out} tokens out, {plan.rounds} rounds of {plan.total} answers each way, on "
        f"{cores()} cores that the clients share."
    )
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    report.write(PAGE, "overhead", f"{about}\n\n{table}")


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    plan = Plan()
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.text_overhead",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--clients", type=int, default=plan.clients)
    add("--rounds", type=int, default=plan.rounds)
    add("--answers", type=int, default=plan.answers, help="of each client in a round")
    add("--tokens-in", type=int, default=plan.tokens_in)
    add("--tokens-out", type=int, default=plan.tokens_out)
    add("--write", action="store_true", help=f"put the table into docs/{PAGE.name}")
    add("--direct", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
