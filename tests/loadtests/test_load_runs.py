"""Short load tests of the real server: for function and right answers, not for time."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import onnx
import psutil
import pytest
from loadtests import model
from loadtests.server import Server, free_ports, running
from onnx import numpy_helper

ROOT = Path(__file__).resolve().parents[2]
PROTOCOLS = ("http", "grpc", "grpc-stream")
MODEST = ("--users", "8", "--duration", "3", "--warmup", "0.5")
ANY_SPEED = ("--require", "rate=0.1", "--require", "p99=1e5")


def load(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The load test as a process."""
    command = [sys.executable, "-m", "loadtests.load", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=150
    )


def at(server: Server) -> list[str]:
    host, http = server.http.split(":")
    return ["--server", host, "--http-port", http, "--grpc-port", server.grpc.split(":")[1]]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`mlp`, and `other`: the same with other weights."""
    folder = tmp_path_factory.mktemp("load")
    right, wrong = folder / "mlp.onnx", folder / "other.onnx"
    model.write(right)
    changed = onnx.load(right)
    weights = changed.graph.initializer[0]
    weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights) * 2, weights.name))
    onnx.save(changed, wrong)
    with running(f"mlp={right}", ["--model", f"other={wrong}"]) as server:
        yield server


@pytest.mark.slow
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_each_protocol_gives_right_answers_and_a_report(
    served: Server, tmp_path: Path, protocol: str
) -> None:
    report = tmp_path / "report.html"
    done = load(
        "mlp", *at(served), *MODEST, *ANY_SPEED, "--protocol", protocol, "--rate", "100",
        "--check", "1", "--require", "failed=0", "--report", report,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("passed\n")
    answers, checked = re.findall(r"([\d,]+) answers in \d+ s, ([\d,]+) checked", done.stdout)[0]
    assert answers == checked != "0"
    page = report.read_text()
    assert "failed of accepted" in page
    assert re.search(r'"history": \[\{', page), "there is nothing to plot"


@pytest.mark.slow
def test_a_rate_is_kept_to(served: Server) -> None:
    done = load("mlp", *at(served), "--users", "8", "--rate", "40", "--duration", "5")
    seen = re.findall(r"checked; ([\d,]+)/s", done.stdout)
    assert 0 < int(seen[0]) <= 44, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_wrong_answers_are_failures(served: Server, protocol: str) -> None:
    done = load(
        "mlp", *at(served), *MODEST, *ANY_SPEED, "--model", "other", "--check", "1",
        "--protocol", protocol,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert "wrong answer: y is off by" in done.stdout
    assert "no request was answered" in done.stdout


@pytest.mark.slow
def test_a_missed_threshold_fails_and_a_missed_target_does_not(served: Server) -> None:
    target = ("--target", "rate=1e9")
    done = load("mlp", *at(served), *MODEST, *ANY_SPEED, *target)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "not reached" in done.stdout
    strict = load("mlp", *at(served), *MODEST, *target, "--strict")
    assert strict.returncode == 1
    assert "FAIL" in strict.stdout


@pytest.mark.slow
def test_locust_workers_share_the_users(served: Server, tmp_path: Path) -> None:
    done = load(
        "mlp", *at(served), *MODEST, *ANY_SPEED, "--workers", "2", "--rate", "100", "--check", "1",
        "--report", tmp_path / "report.html",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    answers, checked = re.findall(r"([\d,]+) answers in \d+ s, ([\d,]+) checked", done.stdout)[0]
    assert answers == checked != "0"


@pytest.mark.slow
def test_workers_started_by_hand_take_what_the_master_says(served: Server) -> None:
    (port,) = map(str, free_ports(1))
    command = [sys.executable, "-m", "loadtests.load", "--worker", "--master-port", port]
    worker = subprocess.Popen(command, cwd=ROOT)
    try:
        done = load(
            "mlp", *at(served), *MODEST, *ANY_SPEED, "--master", "1", "--master-port", port,
            "--protocol", "grpc", "--rate", "50",
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert worker.wait(30) == 0
    finally:
        worker.kill()
        worker.wait()


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_refusals_are_counted_apart_from_failures(protocol: str) -> None:
    done = load(
        "mlp", "--users", "48", "--duration", "4", "--warmup", "0.5", "--protocol", protocol,
        "--serve=--max-queue-size 1 --max-batch-size 1", *ANY_SPEED, "--require", "failed=0",
        "--require", "refused=0",
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    rows = {line.split("│")[1].strip(): line for line in done.stdout.splitlines() if "│" in line}
    assert "pass" in rows["failed of accepted"]
    assert "FAIL" in rows["refused of sent"]


@pytest.mark.slow
def test_a_soak_starts_the_server_and_watches_its_memory() -> None:
    done = load("soak", "--duration", "8", "--target", "rate=1", "--require", "memory_slope=1e9")
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = [line for line in done.stdout.splitlines() if "memory MiB/h" in line]
    assert "not measured" not in row
    assert re.search(r"server memory [\d,]+ to [\d,]+ MiB", done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["magika", "ocr"])
def test_models_of_packages_give_right_answers(name: str) -> None:
    done = load(name, *MODEST, *ANY_SPEED, "--check", "1", "--require", "failed=0")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_chat_reports_first_token_and_gaps_as_statistics(tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    done = load(
        "chat", "--users", "2", "--duration", "15", "--warmup", "1", "--require", "tokens=1",
        "--report", report,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for row in ("tokens/s", "first token p95 ms", "between tokens p95 ms"):
        assert row in done.stdout
    page = report.read_text()
    for entry in ("time to first token", "inter-token latency", "tokens/s of one answer"):
        assert f'"name": "{entry}"' in page


@pytest.mark.slow
def test_a_server_that_is_not_there_fails_the_run() -> None:
    (port,) = map(str, free_ports(1))
    done = load("mlp", *MODEST, "--rate", "20", "--server", "127.0.0.1", "--http-port", port)
    assert done.returncode == 1
    assert "the connection failed" in done.stdout


def is_worker(process: psutil.Process) -> bool:
    try:
        return "--worker" in process.cmdline()
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
def test_a_run_that_is_ended_leaves_no_process_behind() -> None:
    command = [sys.executable, "-m", "loadtests.load", "mlp", "--duration", "60", "--workers", "1"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        family: list[psutil.Process] = []
        until = time.monotonic() + 60
        while not any(is_worker(child) for child in family):
            assert time.monotonic() < until, f"no worker was started: {family}"
            time.sleep(0.2)
            family = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        assert process.communicate(timeout=60)[1].endswith("interrupted\n")
        assert process.returncode == 130
    gone, alive = psutil.wait_procs(family, timeout=10)
    assert len(gone) >= 3
    assert alive == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nope"], "error: there is no scenario 'nope'; there are chat, fraud"),
        (["mlp", "--require", "p42=1"], "error: there is no threshold 'p42'"),
        (["mlp", "--require", "p99=abc"], "error: p99 = 'abc' is no number"),
        (["mlp", "--report", "/nowhere/r.html"], "/nowhere/r.html cannot be written"),
        (["mlp", "--option", "size=3"], "there is no option 'size'; mlp has none"),
        (["mlp", "--master", "2"], "error: --master needs --server"),
        ([], "error: which scenario?"),
    ],
)
def test_bad_input_is_said_without_a_traceback(arguments: list[str], says: str) -> None:
    done = load(*arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_the_scenarios_are_listed() -> None:
    done = load("--list")
    assert done.returncode == 0
    assert re.search(r"^mlp +A tiny model", done.stdout, re.MULTILINE)
