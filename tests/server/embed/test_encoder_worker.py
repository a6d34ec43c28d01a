"""An encoder's worker as a process: it drains, and says why it cannot serve."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import encoder_folders
import httpx2

TONE = encoder_folders.cases()["bert"]
PERMANENT = 3


@contextlib.contextmanager
def started(
    folder: Path, artifact: Path, flags: Sequence[str] = ()
) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "ds_serve.embed", "--uds", str(folder / "uds")]
    command += ["--model", "tone", "--artifact", str(artifact), "--threads", "1", *flags]
    env = os.environ | {"DS_FAILURE_FILE": str(folder / "failure")}
    env.pop("PROMETHEUS_MULTIPROC_DIR", None)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env) as process:
        try:
            yield process
        finally:
            process.kill()


def test_what_was_asked_before_the_signal_is_answered(tmp_path: Path) -> None:
    artifact = encoder_folders.write(tmp_path / "tone", TONE)
    answers: list[int] = []
    with started(tmp_path, artifact) as process, client(tmp_path) as http:
        ready(http, tmp_path / "uds")
        gauge = "vllm:num_requests_waiting{"

        def ask() -> None:
            body = {"model": "tone", "input": ["the cat sat on the mat"] * 4000}
            answers.append(http.post("/classify", json=body).status_code)

        asking = threading.Thread(target=ask)
        asking.start()
        while not any(
            line.startswith(gauge) and not line.endswith(" 0.0")
            for line in http.get("/metrics").text.splitlines()
        ):
            assert asking.is_alive()
        process.send_signal(signal.SIGTERM)
        asking.join(60)
        assert answers == [200]
        assert process.wait(30) == 0
    assert not (tmp_path / "uds").exists()


def test_a_folder_that_cannot_be_served_is_named(tmp_path: Path) -> None:
    artifact = encoder_folders.write(tmp_path / "tone", TONE)
    (artifact / "tokenizer.json").unlink()
    with started(tmp_path, artifact) as process:
        _, said = process.communicate(timeout=60)
    assert process.returncode == PERMANENT
    assert f"{artifact} holds no tokenizer.json" in (tmp_path / "failure").read_text()
    assert "Traceback" not in said


def test_a_batch_that_hangs_ends_the_worker(tmp_path: Path) -> None:
    """With a limit so short that any batch is over it."""
    artifact = encoder_folders.write(tmp_path / "tone", TONE)
    flags = ["--hang-timeout", "0.0001", "--max-batch-tokens", "262144"]
    with started(tmp_path, artifact, flags) as process, client(tmp_path) as http:
        ready(http, tmp_path / "uds")
        body = {"model": "tone", "input": ["the cat " * 15] * 8000}
        # The worker looks once a second: a quick machine is done with some of them in between.
        answer = next(
            answer
            for answer in (http.post("/classify", json=body) for _ in range(60))
            if answer.status_code != 200
        )
        assert (answer.status_code, process.wait(30)) == (500, 1)
        assert "the engine hung" in answer.json()["error"]["message"]


def client(folder: Path) -> httpx2.Client:
    transport = httpx2.HTTPTransport(uds=str(folder / "uds"))
    return httpx2.Client(transport=transport, base_url="http://worker", timeout=60)


def ready(http: httpx2.Client, uds: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if uds.exists() and http.get("/health").status_code == 200:
            return
        time.sleep(0.1)
    raise AssertionError("not ready")
