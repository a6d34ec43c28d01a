"""Device, gateway and cloud in networks of their own: links are cut under load, and come back."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from loadtests import edge_link, edge_models, edge_tiers
from loadtests.edge_drive import Answer
from loadtests.edge_tiers import Line, Tiers
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from serving import until

WHY = edge_link.missing()

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(WHY), reason=WHY),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

COLLECTOR = """
import http.server, pathlib, sys, time
class Take(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        pathlib.Path(sys.argv[1], str(time.time_ns())).write_bytes(body)
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()
    def log_message(self, *_): pass
http.server.HTTPServer(("0.0.0.0", 4318), Take).serve_forever()
"""
"""Keeps what it is sent, in files named by the time of their arrival."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> edge_models.Models:
    return edge_models.make(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def tiers(models: edge_models.Models, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tiers]:
    folder = tmp_path_factory.mktemp("tiers")
    with edge_tiers.running(
        models,
        folder,
        Line(0.005, 0.01),
        Line(0.02, 0.01),
        rule="&within=0.5",
        flags=["--upstream-probe", "1"],
        device_flags=[
            "--metrics-push", "http://10.77.1.2:4318/v1/metrics",
            "--metrics-push-secs", "0.5",
            "--metrics-push-folder", str(folder / "waiting"),
        ],
    ) as running:  # fmt: skip
        assert running.uplink.above == "10.77.1.2"
        yield running
        for tier in (running.device, running.gateway, running.cloud):
            assert "Traceback" not in tier.log(), tier.log()


@pytest.fixture(scope="module")
def collected(tiers: Tiers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The files of a collector on the gateway's host."""
    folder = tmp_path_factory.mktemp("collected")
    command = tiers.gateway.host.command([sys.executable, "-c", COLLECTOR, str(folder)])
    process = subprocess.Popen(command)
    until(lambda: any(folder.iterdir()), "no metrics arrive", 20)
    yield folder
    process.kill()
    process.wait()


def load(tiers: Tiers, seconds: float) -> subprocess.Popen[str]:
    words = ("--seconds", str(seconds), "--pause", "0.02")
    return tiers.load("http://127.0.0.1:8000", "small", *words)


def shares(answers: list[Answer]) -> tuple[int, int, int]:
    """How many were passed on, and of the others how many are marked and are not."""
    passed = sum(answer.tier > 0 for answer in answers)
    marked = sum(answer.degraded for answer in answers)
    return passed, marked, len(answers) - passed - marked


def told(folder: Path) -> list[tuple[int, int, dict[str, float]]]:
    """Of each snapshot: when it arrived and when it was taken, and answers by outcome."""
    found = []
    for file in sorted(folder.iterdir(), key=lambda each: int(each.name)):
        message = ExportMetricsServiceRequest.FromString(gzip.decompress(file.read_bytes()))
        (scope,) = message.resource_metrics[0].scope_metrics
        counted: dict[str, float] = {}
        when = 0
        for metric in scope.metrics:
            if metric.name == "ds_edge_answers":
                for point in metric.sum.data_points:
                    labels = {pair.key: pair.value.string_value for pair in point.attributes}
                    counted[labels["outcome"]] = point.as_double
            for point in (*metric.sum.data_points, *metric.gauge.data_points):
                when = point.time_unix_nano
        found.append((int(file.name), when, counted))
    return found


def counted(tiers: Tiers) -> dict[str, float]:
    """The same, of the device's own metrics."""
    found = {}
    for line in tiers.device.get("/metrics").splitlines():
        if line.startswith("ds_edge_answers_total"):
            found[line.split('outcome="')[1].split('"')[0]] = float(line.split()[-1])
    return found


def test_a_cut_uplink_loses_no_request_and_no_count(
    tiers: Tiers, models: edge_models.Models, collected: Path
) -> None:
    running = load(tiers, 22)
    time.sleep(4)
    tiers.uplink.cut()
    cut = time.time()
    time.sleep(7)
    tiers.uplink.restore()
    restored = time.time()
    answers = edge_tiers.answers(running)

    assert {answer.status for answer in answers} == {200}
    before = [each for each in answers if each.begun + each.took < cut]
    during = [each for each in answers if cut < each.begun < restored - 1]
    after = [each for each in answers if each.begun > restored + 8]
    passed, marked, own = shares(before)
    assert passed > 10
    assert marked <= len(before) // 20, "a packet that is lost may take longer than the rule allows"
    assert own > passed
    passed, marked, own = shares(during)
    assert passed == 0
    assert marked > 10
    assert own > marked
    assert max(each.took for each in during) < 5
    passed, marked, _ = shares(after)
    assert passed > 10
    assert marked <= len(after) // 20
    log = tiers.device.log()
    assert "its answers are its own now" in log
    assert "middle can be asked again" in log

    until(lambda: told(collected)[-1][2] == counted(tiers), "metrics do not catch up", 20)
    snapshots = told(collected)
    late = [when for arrived, when, _ in snapshots if cut < when / 1e9 < restored < arrived / 1e9]
    assert len(late) >= 5, "what was counted during the cut came after it, with its own times"
    assert sum(snapshots[-1][2].values()) == len(answers)
    assert [when for _, when, _ in snapshots] == sorted(when for _, when, _ in snapshots)


def test_a_cut_further_up_is_told_to_the_device_s_client(tiers: Tiers) -> None:
    tiers.backhaul.cut()
    answers = edge_tiers.answers(load(tiers, 6))
    tiers.backhaul.restore()
    assert {answer.status for answer in answers} == {200}
    further = {(answer.tier, answer.degraded) for answer in answers}
    assert (1, True) in further, "the gateway was not sure, and could not ask"
    assert (1, False) in further
    assert not any(answer.tier == 2 for answer in answers)


def test_a_model_elsewhere_is_described_and_served_here(tiers: Tiers) -> None:
    def there() -> bool:
        return json.loads(tiers.device.get("/health/ready"))["status"] == "ready"

    until(there, "the device is not ready", 10)
    said = json.loads(tiers.device.get("/v2/models/middle"))
    assert said["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 32, 32]}]
    words = ("--requests", "3", "--connections", "1")
    found = edge_tiers.answers(tiers.load("http://127.0.0.1:8000", "middle", *words))
    assert {answer.status for answer in found} == {200}
