"""Text that a small model passes on, and classifiers without a network between."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx_models
import pytest
import tritonclient.grpc as triton
from onnx import helper, numpy_helper
from openai_upstream import OpenAIUpstream
from serving import Server, until


class Servers(NamedTuple):
    small: OpenAIUpstream
    large: OpenAIUpstream
    cloud: Server
    device: Server
    repository: Path

    def chat(self, text: str, **more: Any) -> Any:
        body = {"model": "chat", "messages": [{"role": "user", "content": text}]} | more
        return self.device.client.post(f"{self.device.http}/v1/chat/completions", json=body)

    def infer(self, *rows: list[float], model: str = "small", **more: Any) -> Any:
        tensor = {"name": "x", "datatype": "FP32", "shape": [len(rows), 2], "data": rows}
        url = f"{self.device.http}/v2/models/{model}/infer"
        return self.device.client.post(url, json={"inputs": [tensor]} | more)


def classifier(path: Path, scale: float, width: int = 2) -> Path:
    """Logits [n, 2] are the inputs times `scale`, and `twice` is them again."""
    weights = numpy_helper.from_array((np.eye(width, 2) * scale).astype(np.float32), "w")
    return onnx_models.save(
        path,
        [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Add", ["y", "y"], ["z"])],
        [helper.make_tensor_value_info("x", onnx_models.FLOAT, ["n", width])],
        [helper.make_tensor_value_info(name, onnx_models.FLOAT, ["n", 2]) for name in "yz"],
        [weights],
    )


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    folder: Path = tmp_path_factory.mktemp("edge")
    small = classifier(folder / "small.onnx", 1)
    classifier(folder / "models" / "net" / "1" / "model.onnx", 1)
    cloud = Server(
        *("--model", f"big={classifier(folder / 'big.onnx', 100)}"),
        *("--model-repository", folder / "models"),
        *("--model-control-mode", "poll", "--repository-poll-secs", "1"),
    )
    with cloud, OpenAIUpstream() as near, OpenAIUpstream() as far:
        rules = ["--escalate", "small=far?below=0.9&output=y&scores=logits&within=5"]
        rules += [
            "--escalate",
            "vague=far?below=0.9",
            "--escalate",
            "first=small?below=0.6&output=z",
        ]
        rules += ["--escalate", "chat=large?tokens=50&refusal=^I%20cannot&finish=length&within=5"]
        models = [f"{name}={small}" for name in ("small", "vague", "first")]
        models += [f"far={cloud.http}/v2#big", f"chat={near.address}#s", f"large={far.address}#l"]
        models += [f"net={cloud.http}/v2#net"]
        models += ["gone=http://127.0.0.1:9/v2#x", "dead=http://127.0.0.1:9/v1#x"]
        flags = [word for model in models for word in ("--model", model)]
        with Server(*flags, *rules, "--upstream-probe", "0.2") as device:
            yield Servers(near, far, cloud, device, folder / "models")
            assert "Traceback" not in device.log(), device.log()


def marks(answer: Any) -> tuple[str | None, str | None]:
    return answer.headers.get("x-ds-tier"), answer.headers.get("x-ds-degraded")


def test_only_rows_that_are_not_sure_are_asked_elsewhere(servers: Servers) -> None:
    answer = servers.infer([9, 0], [1, 0], [0, 1])
    assert answer.json()["outputs"][0]["data"] == [9, 0, 100, 0, 0, 100]
    assert answer.json()["parameters"] == {"ds_tier": 1}
    assert marks(answer) == ("1", None)
    rows = servers.cloud.metric("nv_inference_count", model="big")
    assert servers.infer([9, 0]).json()["parameters"] == {"ds_tier": 0}
    assert servers.infer([1, 0], [0, 9]).status_code == 200
    assert servers.cloud.metric("nv_inference_count", model="big") == rows + 1
    assert servers.device.metric("ds_edge_answers_total", model="small", outcome="local") >= 1


def test_outputs_that_the_client_wants_alone(servers: Servers) -> None:
    answer = servers.infer([1, 0], [9, 0], outputs=[{"name": "z"}]).json()
    assert [(each["name"], each["data"]) for each in answer["outputs"]] == [("z", [200, 0, 18, 0])]


def test_grpc_has_the_marks_as_parameters(servers: Servers) -> None:
    given = triton.InferInput("x", [1, 2], "FP32")
    given.set_data_from_numpy(np.array([[1, 0]], np.float32))
    with triton.InferenceServerClient(servers.device.grpc) as client:
        answer = client.infer("small", [given])
    assert answer.as_numpy("y").tolist() == [[100, 0]]
    assert answer.get_response().parameters["ds_tier"].int64_param == 1


def test_rules_that_follow_each_other(servers: Servers) -> None:
    assert servers.infer([0.2, 0], model="first").json()["parameters"] == {"ds_tier": 2}


def test_a_rule_that_does_not_fit_its_model_says_why(servers: Servers) -> None:
    answer = servers.infer([1, 0], model="vague")
    assert answer.status_code == 503
    assert "say by output=NAME" in answer.json()["error"]
    assert "y, z" in answer.json()["error"]


def test_a_model_elsewhere_has_statistics_and_errors_of_its_own(servers: Servers) -> None:
    assert servers.infer([1, 2], model="far").json()["outputs"][0]["data"] == [100, 200]
    counted = servers.device.get("/v2/models/far/stats").json()["model_stats"][0]
    assert counted["inference_stats"]["success"]["count"] >= 1
    assert servers.infer([1, 2], model="far", outputs=[{"name": "q"}]).status_code == 400
    away = servers.infer([1, 2], model="gone")
    assert away.status_code == 503
    assert "loading" in away.json()["error"]
    assert servers.device.ready(), "it does not wait for a server elsewhere"


def test_readiness_names_the_servers_that_this_one_is_ready_without(servers: Servers) -> None:
    said = servers.device.get("/health/ready").json()
    assert said["status"] == "ready"
    assert "gone" in said["models"]
    assert said["models"]["gone"].startswith("loading: ")
    assert "say by output=NAME" in said["models"]["vague"], "it refuses all requests"
    assert servers.device.get("/v2/models/vague/ready").status_code == 503
    assert "small" not in said["models"]


def test_a_model_that_has_changed_elsewhere_is_described_anew(servers: Servers) -> None:
    assert servers.infer([1, 2], model="net").status_code == 200
    classifier(servers.repository / "net" / "2" / "model.onnx", 1, width=3)

    def width() -> int:
        said = servers.device.get("/v2/models/net").json()
        return int(said["inputs"][0]["shape"][1])

    until(lambda: width() == 3, "it is described as before", 30, servers.device.log)
    assert servers.infer([1, 2], model="net").status_code == 400
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}]}
    answer = servers.device.client.post(f"{servers.device.http}/v2/models/net/infer", json=body)
    assert answer.json()["outputs"][0]["data"] == [1, 2]
    assert "model net is another on its server than before" in servers.device.log()


def test_a_long_prompt_goes_further_at_once(servers: Servers) -> None:
    before = len(servers.small.seen)
    answer = servers.chat("word " * 100)
    assert marks(answer) == ("1", None)
    assert answer.headers["x-ds-serve-model"] == "large"
    assert servers.large.bodies[-1]["model"] == "l"
    assert len(servers.small.seen) == before
    streamed = servers.chat("word " * 100, stream=True)
    assert marks(streamed) == ("1", None)
    assert "[DONE]" in streamed.text


def test_a_short_one_stays(servers: Servers) -> None:
    before = len(servers.large.seen)
    for more in ({}, {"stream": True}):
        answer = servers.chat("hello", **more)
        assert marks(answer) == ("0", None)
        assert answer.headers["x-ds-serve-model"] == "chat"
    assert len(servers.large.seen) == before


def test_a_refusal_is_asked_of_the_other(servers: Servers) -> None:
    answer = servers.chat("I cannot say")
    assert marks(answer) == ("1", None)
    assert answer.json()["model"] == "l"
    assert marks(servers.chat("You say: I cannot")) == ("0", None), "not at its beginning"


@pytest.mark.parametrize("text", ["I cannot say", "word " * 100])
def test_where_the_other_fails_the_small_one_answers(servers: Servers, text: str) -> None:
    servers.large.failures = [400]
    answer = servers.chat(text)
    assert answer.status_code == 200
    assert answer.json()["model"] == "s"
    assert marks(answer) == ("0", "true")


def test_where_the_small_one_fails_the_other_answers(servers: Servers) -> None:
    servers.small.failures = [500, 500, 500]
    answer = servers.chat("hello")
    assert (answer.status_code, marks(answer)) == (200, ("1", None))


def test_a_text_model_without_a_server_is_a_503(servers: Servers) -> None:
    assert servers.chat("hello", model="dead").status_code == 503


def test_at_last_the_cloud_goes_away(servers: Servers) -> None:
    servers.cloud.close()
    answer = servers.infer([9, 0], [1, 0])
    assert answer.status_code == 200
    assert answer.json()["outputs"][0]["data"] == [9, 0, 1, 0]
    assert answer.json()["parameters"] == {"ds_tier": 0, "ds_degraded": True}
    assert marks(answer) == ("0", "true")
    assert marks(servers.infer([9, 0])) == ("0", None), "of what it is sure of, nothing is missing"
    ready = "/v2/models/far/ready"
    until(lambda: servers.device.get(ready).status_code != 200, "it is not left alone", 10)
    assert servers.device.ready()
