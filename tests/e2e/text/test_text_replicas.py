"""Two workers of one text model on the CPU, of which one dies."""

from __future__ import annotations

import os
import signal

import openai
import pytest
from serving import Server, children, gone, until
from texts import PARIS, TEXT

pytestmark = pytest.mark.slow


def workers(server: Server) -> set[int]:
    """Process ids of the HTTP halves, each of which has an engine loop."""
    return {pid for pid in children(server.process.pid) if children(pid)}


def test_one_of_two_goes_on_alone() -> None:
    with (
        Server("--model", TEXT, "--replicas", "2", "--memory-efficient") as server,
        openai.OpenAI(base_url=f"{server.http}/v1", api_key="none", max_retries=0) as client,
    ):
        ready = f"ready model={TEXT}"
        until(lambda: server.log().count(ready) == 2, "there are not two", 120, server.log)
        before = workers(server)
        assert len(before) == 2
        victim = min(before)
        os.kill(victim, signal.SIGKILL)
        until(lambda: gone(victim), "it is still there")
        for number in range(6):  # some of them would be the other's
            prompt = f"Story {number} is about"
            client.completions.create(model=TEXT, prompt=prompt, max_tokens=2)
        answer = client.chat.completions.create(**PARIS)
        assert "Paris" in (answer.choices[0].message.content or "")
        assert server.ready()
        until(lambda: server.log().count(ready) == 3, "it is not back", 120, server.log)
        assert victim not in workers(server)
