"""One server for both kinds of model, and clients that others wrote."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import openai
import pytest
from serving import Server, until
from texts import FILES, TEXT

from ds_serve.catalogue import fetch


@pytest.fixture(scope="session")
def gguf() -> Path:
    return fetch(TEXT)


@pytest.fixture(scope="package")
def server(gguf: Path) -> Iterator[Server]:
    """Shared by all tests that leave it as it was; its log must hold no traceback in the end."""
    fetch(FILES)
    with Server("--model", TEXT, "--model", FILES) as running:
        yield running
        assert running.stop() == 0
        assert "Traceback" not in running.log(), running.log()


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.http}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture
async def async_client(server: Server) -> AsyncIterator[openai.AsyncOpenAI]:
    base = f"{server.http}/v1"
    async with openai.AsyncOpenAI(base_url=base, api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture
def idle(server: Server) -> Callable[[], None]:
    """Waits until no text is being generated; fails where that takes long."""

    def wait() -> None:
        until(lambda: server.metric("vllm:num_requests_running") == 0, "still generating", 10)

    return wait
