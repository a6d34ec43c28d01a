"""A real text worker on a Unix socket, and clients for it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest
from text_worker import MODEL, TextWorker

from ds_serve.catalogue import fetch


@pytest.fixture(scope="session")
def gguf() -> Path:
    return fetch(MODEL)


@pytest.fixture
def start(gguf: Path) -> Iterator[Callable[..., TextWorker]]:
    """Starts a worker with these flags; `artifact` instead of the real model where given."""
    with tempfile.TemporaryDirectory(prefix="ds-text-") as folder:
        workers: list[TextWorker] = []

        def begin(*flags: str, artifact: Path = gguf) -> TextWorker:
            place = Path(folder, str(len(workers)))
            place.mkdir()
            workers.append(TextWorker(place, artifact, *flags))
            return workers[-1]

        yield begin
        for worker in workers:
            worker.close()


@pytest.fixture(scope="package")
def worker(gguf: Path) -> Iterator[TextWorker]:
    """One ready worker for all tests that leave it as it was."""
    with tempfile.TemporaryDirectory(prefix="ds-text-") as folder:
        running = TextWorker(Path(folder), gguf, "--max-queue-size", "40", "--cache-size-mb", "128")
        try:
            running.wait_ready()
            yield running
        finally:
            running.close()


@pytest.fixture
def client(worker: TextWorker) -> openai.OpenAI:
    return worker.openai()
