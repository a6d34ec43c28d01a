"""What it is worth to send a conversation to the replica that has its beginning in the cache.

`python -m loadtests.text_replicas` serves one model twice (`--replicas 2`) and has conversations of
several turns with it, each with a long system prompt of its own, once with `--replica-routing
prefix` and once with `random`, and prints the time to the first token of later turns, and in how
many of them the prompt was found in the cache: those whose first token took less than half of what
a first turn's takes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time
from pathlib import Path

import aiohttp
from rich.console import Console
from rich.table import Table

from loadtests.report import machine, write
from loadtests.server import running

WORDS = (
    *("river", "stone", "lamp", "garden", "winter", "letter", "bridge", "music", "paper"),
    *("summer", "window", "market", "silver", "story", "morning", "forest", "castle", "ocean"),
)
QUESTIONS = ("What is this about?", "Say more.", "And then?", "In one word?")
COLUMNS = (
    "routing",
    "first token of a first turn, ms",
    "of later turns, ms",
    "later turns found in the cache",
    "all of it, s",
)


async def ask(session: aiohttp.ClientSession, messages: list[dict[str, str]]) -> tuple[float, str]:
    """Seconds to the first token, and the answer."""
    body = {"model": "chat", "messages": messages, "max_tokens": 8, "stream": True}
    begun, first, said = time.perf_counter(), 0.0, []
    async with session.post("/v1/chat/completions", json=body | {"temperature": 0}) as answer:
        if answer.status != 200:
            raise SystemExit(f"{answer.status}: {await answer.text()}")
        async for line in answer.content:
            if not line.startswith(b"data: {"):
                continue
            for choice in json.loads(line[6:])["choices"]:
                if text := choice["delta"].get("content"):
                    first = first or time.perf_counter() - begun
                    said.append(text)
    return first, "".join(said)


async def talk(
    session: aiohttp.ClientSession, number: int, given: argparse.Namespace
) -> tuple[float, list[float]]:
    """One conversation: the time of the first turn's first token, and of all others."""
    choose = random.Random(number)
    system = " ".join(choose.choice(WORDS) for _ in range(given.words))
    messages = [{"role": "system", "content": system}]
    times = []
    for turn in range(given.turns):
        messages.append({"role": "user", "content": QUESTIONS[turn % len(QUESTIONS)]})
        first, said = await ask(session, messages)
        messages.append({"role": "assistant", "content": said})
        times.append(first)
        await asyncio.sleep(given.think)
    return times[0], times[1:]


async def load(url: str, given: argparse.Namespace) -> tuple[list[float], list[float], float]:
    places = asyncio.Semaphore(given.at_once)
    begun = time.perf_counter()
    async with aiohttp.ClientSession(url) as session:

        async def one(number: int) -> tuple[float, list[float]]:
            async with places:
                return await talk(session, number, given)

        await ask(session, [{"role": "user", "content": "Hello"}])
        found = await asyncio.gather(*map(one, range(given.conversations)))
    later = [seconds for _, times in found for seconds in times]
    return [first for first, _ in found], later, time.perf_counter() - begun


def measure(routing: str, given: argparse.Namespace) -> tuple[str, ...]:
    flags = ["--replicas", "2", "--replica-routing", routing, "--gateways", "1"]
    with running(f"chat={given.model}", flags) as server:
        firsts, later, seconds = asyncio.run(load(f"http://{server.http}", given))
    cold = statistics.median(firsts)
    found = sum(each < cold / 2 for each in later) / len(later)
    times = (cold * 1000, statistics.median(later) * 1000)
    return routing, f"{times[0]:,.0f}", f"{times[1]:,.0f}", f"{found:.0%}", f"{seconds:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--conversations", type=int, default=12)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--words", type=int, default=400, help="of each system prompt")
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--think", type=float, default=0.0, help="seconds between two turns")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there")
    given = parser.parse_args()
    rows = [measure(routing, given) for routing in ("prefix", "random")]
    table = Table(*COLUMNS)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    if given.markdown:
        lines = [COLUMNS, ("---", *["---:"] * (len(COLUMNS) - 1)), *rows]
        about = (
            f"{machine({})} {given.model}, {given.conversations} conversations of {given.turns} "
            f"turns, {given.at_once} at once, system prompts of {given.words} words."
        )
        text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        write(given.markdown, "text-replicas", f"{about}\n\n{text}")


if __name__ == "__main__":
    main()
