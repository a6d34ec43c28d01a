"""The server from Python, each time in a process of its own."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from onnx_models import mlp, slow
from serving import READY, until
from slow_requests import json_request

PROGRAM = """
from ds_serve import InferenceServer

if __name__ == "__main__":
    server = InferenceServer({arguments})
    server.run({where})
    print("run has returned")
"""


@pytest.fixture
def start(tmp_path):
    """Starts a program around `InferenceServer(arguments).run(where)`."""
    started = []

    def start(arguments, where='host="127.0.0.1", port=0, grpc_port=0'):
        file = tmp_path / "program.py"
        file.write_text(PROGRAM.format(arguments=arguments, where=where))
        with (tmp_path / "output").open("wb") as output, (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen([sys.executable, str(file)], stdout=output, stderr=log)
        started.append(process)
        return process

    yield start
    for process in started:
        process.terminate()
        process.wait(30)


def _address(folder):
    until(lambda: READY.search((folder / "output").read_text()), "not ready", 60)
    return READY.search((folder / "output").read_text())[1]


def test_serves_until_it_is_told_to_stop(tmp_path, start):
    model = slow(tmp_path / "slow.onnx")
    process = start(
        f'model_path={str(model)!r}, device="cpu", batch_size=3, batch_delay_us=60000000'
    )
    url = f"{_address(tmp_path)}/v2/models/slow"
    with httpx2.Client(timeout=30) as client, ThreadPoolExecutor(3) as pool:
        answers = list(
            pool.map(lambda _: client.post(f"{url}/infer", json=json_request()), range(3))
        )
        assert [answer.status_code for answer in answers] == [200] * 3
        refused = client.post(f"{url}/infer", json=json_request(rows=4))
        counted = client.get(f"{url}/stats").json()["model_stats"][0]
    assert "1 to 3" in refused.json()["error"]
    assert counted["execution_count"] == 1, "batch_size and the setting beside it were kept"
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    assert "run has returned" in (tmp_path / "output").read_text()


@pytest.mark.slow
def test_serves_several_models_by_name_from_a_path(tmp_path, start):
    models = [f"{name}={mlp(tmp_path / 'mlp.onnx')}" for name in ("one", "two")]
    start(f"{models!r}")
    address = _address(tmp_path)
    for name in ("one", "two"):
        assert httpx2.get(f"{address}/v2/models/{name}/ready").status_code == 200


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ('"missing.onnx"', "ConfigError: .*missing.onnx"),
        ("[]", "ConfigError: .*no model"),
        ('MODEL, device="cuda"', "ConfigError: .*--device cuda"),
        ("MODEL, batch_size=0", "ConfigError: .*max-batch-size is 0"),
        ('MODEL, batch_size="8"', "ConfigError: .*max.batch.size.*'8'"),
        ('MODEL, colour="red"', "ConfigError: .*'colour'.*max_batch_size"),
        ("MODEL, max_queue_size=None", "ConfigError: .*max.queue.size.*None"),
    ],
)
def test_wrong_argument_raises_and_names_it(tmp_path, start, arguments, says):
    model = mlp(tmp_path / "mlp.onnx")
    process = start(arguments.replace("MODEL", repr(str(model))))
    assert process.wait(30) == 1
    last = (tmp_path / "log").read_text().strip().splitlines()[-1]
    assert re.search(says, last), last


def test_wrong_port_raises_and_names_it(tmp_path, start):
    model = mlp(tmp_path / "mlp.onnx")
    process = start(repr(str(model)), "port=70000")
    assert process.wait(30) == 1
    assert "ConfigError: --http-port is 70000" in (tmp_path / "log").read_text()


@pytest.mark.slow
def test_model_that_cannot_be_loaded_raises(tmp_path, start):
    model = mlp(tmp_path / "mlp.onnx")
    (tmp_path / "config.pbtxt").write_text("max_bach_size: 8")
    process = start(repr(str(model)))
    assert process.wait(30) == 1
    log = (tmp_path / "log").read_text()
    assert "max_bach_size" in log
    assert "EngineFailure: the server ended because it had no model to serve" in log
