"""Every query of the dashboards, the alerts and the autoscaler, against a scrape of ds-serve."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import charts
import deploy_tools
import httpx2
import numpy as np
import onnx_models
import pytest
import yaml
from openai_upstream import OpenAIUpstream
from serving import Server, until
from texts import TEXT

from ds_serve import metrics

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
BOARDS = sorted((ROOT / "deploy" / "grafana").glob("*.json"))
ALERTS = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yaml").read_text())
ADAPTER = yaml.safe_load((ROOT / "deploy" / "prometheus" / "adapter.yaml").read_text())

VARIABLES = {
    "$job": "ds-serve", "$instance": ".*", "$model": ".*", "$price": "2.5", "$__rate_interval": "1m"
}  # fmt: skip
OF_A_CARD = re.compile(r"nv_gpu_\w+|nv_energy_consumption")
"""Metrics of NVIDIA's GPUs: there is none here, so only their names are checked."""

COMPARISON = re.compile(r"(?P<value>.*)\s(?:==|>|<)\s[\d.]+\s*", re.DOTALL)


class Prometheus(NamedTuple):
    client: httpx2.Client
    address: str

    def ask(self, query: str) -> list[Any]:
        """The samples of a query now."""
        answer = self.client.get(f"{self.address}/api/v1/query", params={"query": query})
        assert answer.status_code == 200, f"{query}: {answer.text}"
        found: list[Any] = answer.json()["data"]["result"]
        return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Everything that there are metrics of: tensors, a cache, text, another server, a stand-in."""
    folder = tmp_path_factory.mktemp("observed")
    onnx_models.mlp(folder / "mlp" / "model.onnx")
    (folder / "mlp" / "config.pbtxt").write_text("response_cache { enable: true }")
    onnx_models.lookup(folder / "lookup.onnx")
    with OpenAIUpstream() as far:
        flags = ["--model", str(folder / "mlp"), "--model", str(folder / "lookup.onnx")]
        flags += ["--model", TEXT, "--model", f"far={far.address}#big"]
        flags += ["--fallback", f"far={TEXT}", "--max-text-queue", "0"]
        flags += ["--max-tokens-in-flight", "64"]
        flags += ["--response-cache-byte-size", "1000000", "--metrics-port", str(free_port())]
        with Server(*flags) as running:
            far.failures = [500] * 3
            yield running


@pytest.fixture(scope="module")
def prometheus(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("prometheus")
    port = server.arguments[server.arguments.index("--metrics-port") + 1]
    # What Kubernetes would say of the server.
    labels = {"namespace": "serving", "pod": "demo-1", "service": "demo-each"}
    target = {"targets": [f"127.0.0.1:{port}"], "labels": labels}
    job = {"job_name": "ds-serve", "scrape_interval": "1s", "static_configs": [target]}
    (folder / "prometheus.yml").write_text(yaml.safe_dump({"scrape_configs": [job]}))
    address = f"http://127.0.0.1:{free_port()}"
    command = [
        deploy_tools.prometheus(), f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address.removeprefix('http://')}", "--log.level=warn",
    ]  # fmt: skip
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log) as process,
        httpx2.Client(timeout=30) as client,
    ):
        try:
            running = Prometheus(client, address)
            said = (folder / "log").read_text
            until(lambda: _scraped(running) > 0, "Prometheus has no scrape", 60, said)
            use(server)
            before = _scraped(running)
            until(lambda: _scraped(running) >= before + 3, "too few scrapes", 60, said)
            yield running
        finally:
            process.terminate()
            process.wait(30)


def _scraped(running: Prometheus) -> float:
    try:
        if running.client.get(f"{running.address}/-/ready").status_code != 200:
            return 0  # while it starts
        found = running.ask('count_over_time(ds_model_ready{model="mlp"}[1h])')
    except httpx2.TransportError:
        return 0
    return float(found[0]["value"][1]) if found else 0


def use(server: Server) -> None:
    """Requests that succeed, repeat, fail and are refused, and a worker that dies; each counter
    is there before it rises, as in a server that has run for long.
    """
    for _ in range(2):
        for number in range(5):
            assert infer(server, "mlp", "x", np.full((1, 64), number % 3, np.float32)) == 200
        assert infer(server, "lookup", "index", np.array([[3]])) == 200
        assert infer(server, "lookup", "index", np.array([[99]])) != 200
        assert complete(server, TEXT, 8) == 200
        assert complete(server, "far", 8) == 200
        url, body = completion(server, TEXT, 500)
        with server.client.stream("POST", url, json=body) as long:
            assert long.status_code == 200
            assert complete(server, TEXT, 500) == 429
        time.sleep(1.5)
    before = server.metric("ds_worker_restarts_total")
    os.kill(server.worker("lookup"), signal.SIGKILL)
    until(lambda: server.metric("ds_worker_restarts_total") > before, "not started again")
    until(server.ready, "not ready again")


def infer(server: Server, model: str, name: str, rows: np.ndarray) -> int:
    kind = "FP32" if rows.dtype == np.float32 else "INT64"
    tensor = {"name": name, "datatype": kind, "shape": rows.shape, "data": rows.ravel().tolist()}
    url = f"{server.http}/v2/models/{model}/infer"
    return server.client.post(url, json={"inputs": [tensor]}).status_code


def complete(server: Server, model: str, tokens: int) -> int:
    url, body = completion(server, model, tokens)
    return server.client.post(url, json=body | {"stream": False}).status_code


def completion(server: Server, model: str, tokens: int) -> tuple[str, Any]:
    body = {"model": model, "prompt": "Once upon a time", "max_tokens": tokens, "ignore_eos": True}
    return f"{server.http}/v1/completions", body | {"stream": True}


def panels() -> Iterator[Any]:
    for board in BOARDS:
        for panel in json.loads(board.read_text())["panels"]:
            for target in panel["targets"]:
                title = f"{board.stem}: {panel['title']} {target['refId']}"
                yield pytest.param(target["expr"], id=title)


def filled(expression: str) -> str:
    for name, value in sorted(VARIABLES.items(), reverse=True):
        expression = expression.replace(name, value)
    assert "$" not in expression
    return expression


@pytest.mark.parametrize("expression", [*panels()])
def test_a_panel_shows_something(prometheus: Prometheus, expression: str) -> None:
    found = prometheus.ask(filled(expression))
    if cards := OF_A_CARD.findall(expression):
        assert all(_declared(name) for name in cards)
        return
    assert found, expression
    assert any(sample["value"][1] not in ("NaN", "+Inf", "-Inf") for sample in found), found


def _declared(name: str) -> bool:
    """Whether ds-serve has a metric of that name; counters' names are kept without `_total`."""
    return any(getattr(each, "_name", "") == name for each in vars(metrics).values())


@pytest.mark.parametrize("rule", ALERTS["groups"][0]["rules"], ids=lambda rule: rule["alert"])
def test_an_alert_is_about_something(prometheus: Prometheus, rule: dict[str, str]) -> None:
    prometheus.ask(rule["expr"])
    value = COMPARISON.fullmatch(rule["expr"])
    assert value
    assert prometheus.ask(value["value"])


def test_the_autoscaler_is_told_the_load(prometheus: Prometheus) -> None:
    (trigger,) = charts.one(charts.rendered("production"), "ScaledObject")["spec"]["triggers"]
    (sample,) = prometheus.ask(trigger["metadata"]["query"])
    assert float(sample["value"][1]) >= 0


def test_the_adapter_is_told_the_load_of_each_pod(prometheus: Prometheus) -> None:
    (rule,) = ADAPTER["rules"]["custom"]
    assert prometheus.ask(rule["seriesQuery"])
    words = {"<<.Series>>": "ds_load", "<<.GroupBy>>": "pod"}
    words["<<.LabelMatchers>>"] = 'namespace="serving",pod=~"demo-1"'
    query = rule["metricsQuery"]
    for name, value in words.items():
        query = query.replace(name, value)
    (sample,) = prometheus.ask(query)
    assert sample["metric"] == {"pod": "demo-1"}
