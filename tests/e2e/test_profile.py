"""`ds-profile` as a process, with real servers under it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_models
import pytest
from serving import Server, children, gone, until

PROGRAM = Path(sys.executable).with_name("ds-profile")
STAGES = ["parse", "hand over", "queue", "join", "compute", "split", "hand back", "encode", "send"]


def profile(*arguments: str | Path, status: int = 0) -> str:
    """What `ds-profile` prints, on both streams, ending with this status."""
    done = subprocess.run(
        [str(PROGRAM), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == status, done.stdout
    return done.stdout


def in_order(text: str, words: Sequence[str]) -> bool:
    places = [text.find(f"│ {word} ") for word in words]
    return -1 not in places and places == sorted(places)


@pytest.fixture(scope="module")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return onnx_models.mlp(tmp_path_factory.mktemp("profile") / "mlp.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_run_and_a_report_of_its_traces(mlp: Path, tmp_path: Path, protocol: str) -> None:
    page, file = tmp_path / "run.html", tmp_path / "trace.json"
    said = profile(
        "run", mlp, "--protocol", protocol, "--concurrency", "4", "--seconds", "0.5",
        "--trace-rate", "2", "--trace-file", file, "-o", page, "--", "--max-batch-size", "8",
    )  # fmt: skip
    assert in_order(said, [*STAGES, "network", "total"])
    assert "MatMul" in said
    assert "failed: 0" in said
    assert re.search(r"mlp over \w+: [\d,]+ traces", page.read_text())
    again = tmp_path / "report.html"
    said = profile("report", file, "-o", again)
    assert in_order(said, [*STAGES, "total"])
    assert "network" not in said
    assert "<svg" in again.read_text()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_run_with_data_of_ones_own(tmp_path: Path) -> None:
    """A model that takes only lengths that are multiples of 16."""
    model = onnx_models.picky_length(tmp_path / "picky.onnx")
    np.savez(tmp_path / "x.npz", x=np.ones((3, 48), np.float32))
    for wish in (["--inputs", tmp_path / "x.npz"], ["--shape", "x=2x32"], []):
        said = profile("run", model, "--seconds", "0.2", "--no-layers", *wish)
        assert in_order(said, [*STAGES, "network", "total"])
    said = profile("run", model, "--seconds", "0.2", "--shape", "x=1x3", status=1)
    assert "ds-profile: model 'picky' refused a request" in said
    said = profile("run", model, "--shape", "z=1x3", status=1)
    assert "--shape z: the model has no such input; it has x" in said


@pytest.mark.slow
def test_what_cannot_be_profiled_is_said(tmp_path: Path) -> None:
    assert "ds-profile: there is no file" in profile("run", tmp_path / "no.onnx", status=1)
    (tmp_path / "empty.json").write_text("[]")
    assert "no trace of a request" in profile("report", tmp_path / "empty.json", status=1)
    assert "--latency-ms" in profile("tune", "magika", status=2)
    lost = tmp_path / "nowhere" / "page.html"
    said = profile("run", tmp_path / "no.onnx", "-o", lost, status=1)
    assert f"page.html cannot be written: there is no folder {lost.parent}" in said


TUNE = ["--latency-ms", "500", "--seconds", "0.2", "--repeats", "1", "--concurrency", "4"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_tuning_goes_on_after_a_kill_and_ds_serve_loads_what_it_writes(
    mlp: Path, tmp_path: Path
) -> None:
    study, output = tmp_path / "tune.db", mlp.with_name("config.pbtxt")
    command = ["tune", str(mlp), *TUNE, "--study", str(study), "-o", str(output)]
    first = tmp_path / "first.txt"
    with first.open("wb") as out:
        process = subprocess.Popen(
            [str(PROGRAM), *command, "--trials", "50"], stdout=out, stderr=subprocess.STDOUT
        )
    try:
        until(lambda: "trial 2/50" in first.read_text(), "no two trials", 120, first.read_text)
        until(lambda: bool(children(process.pid)), "no third server", 60)
        servers = children(process.pid)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    until(lambda: all(gone(pid) for pid in servers), "servers outlive ds-profile", 30)
    done = first.read_text().count("trial ")
    assert not output.exists()

    said = profile(*command, "--trials", str(done + 1))
    assert f"going on after {done} trials" in said
    assert re.findall(r"^trial (\d+)/", said, re.MULTILINE) == [str(done + 1)]
    assert "final 1/1: the default:" in said
    found = re.search(r"max_batch_size: (\d+)", output.read_text())
    assert found is not None
    with Server("--model", mlp) as server:
        config = json.loads(server.get("/v2/models/mlp/config").text)
    assert config["max_batch_size"] == int(found[1])
    said = profile("tune", mlp, "--latency-ms", "1", "--study", study, status=1)
    assert f"ds-profile: --study {study} is of other trials" in said


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_limit_that_nothing_keeps(mlp: Path, tmp_path: Path) -> None:
    output = tmp_path / "config.pbtxt"
    said = profile(
        "tune", mlp, "--latency-ms", "0.001", "--trials", "1", "--seconds", "0.2",
        "--repeats", "1", "-o", output, status=1,
    )  # fmt: skip
    assert "no configuration tried keeps p99 within 0.001 ms; the nearest has" in said
    assert not output.exists()


def test_the_command_line_explains_itself() -> None:
    said = profile("--help")
    for command in ("run", "report", "tune"):
        assert command in said
        assert profile(command, "--help")
