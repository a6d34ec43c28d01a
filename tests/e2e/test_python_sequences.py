"""Python models of sequences: told where in one a request is, they keep the state themselves."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import python_models
import tritonclient.grpc
import tritonclient.http
from serving import Server
from tritonclient.utils import InferenceServerException

CONTROLS = """
    control_input { name: "START" control {
        kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] } }
    control_input { name: "END" control {
        kind: CONTROL_SEQUENCE_END bool_false_true: [ false, true ] } }
    control_input { name: "READY" control {
        kind: CONTROL_SEQUENCE_READY fp32_false_true: [ 0, 1 ] } }
    control_input { name: "CORRID" control {
        kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_%s } }
"""
TENSORS = """
backend: "python"
input { name: "X" data_type: TYPE_INT32 dims: [ 1 ] }
output { name: "TOTAL" data_type: TYPE_INT32 dims: [ 1 ] }
output { name: "TOLD" data_type: TYPE_INT32 dims: [ 3 ] }
output { name: "WHO" data_type: TYPE_STRING dims: [ 1 ] }
"""
# The state of each sequence under its name; WHO is that name, and the requests of a list.
NAMED = """
class TritonPythonModel:
    def initialize(self, args):
        self.totals = {}

    def execute(self, requests):
        return [self.one(request, len(requests)) for request in requests]

    def one(self, request, together):
        given = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        key = given["CORRID"].item()
        assert request.correlation_id() in (key, key.decode() if isinstance(key, bytes) else key)
        if given["START"].item():
            self.totals[key] = 0
        self.totals[key] += given["X"].item()
        told = [given["START"].item(), int(given["END"].item()), int(given["READY"].item())]
        shape = given["X"].shape
        text = key.decode() if isinstance(key, bytes) else str(key)
        total = np.full(shape, self.totals[key], np.int32)
        if given["END"].item():
            del self.totals[key]
        return pb_utils.InferenceResponse([
            pb_utils.Tensor("TOTAL", total),
            pb_utils.Tensor("TOLD", np.array(told, np.int32).reshape(*shape[:-1], 3)),
            pb_utils.Tensor("WHO", np.full(shape, f"{text} {together}", np.object_)),
        ])
"""
# One state in each object: right only where a sequence has an object of its own.
ALONE = """
class TritonPythonModel:
    def initialize(self, args):
        self.name = args["model_instance_name"]

    def execute(self, requests):
        (request,) = requests
        x = pb_utils.get_input_tensor_by_name(request, "X").as_numpy()
        if request.flags() & pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START:
            self.total = 0
        time.sleep(0.01)
        self.total += x.item()
        return [pb_utils.InferenceResponse([
            pb_utils.Tensor("TOTAL", np.full(x.shape, self.total, np.int32)),
            pb_utils.Tensor("WHO", np.full(x.shape, self.name, np.object_)),
        ])]
"""
# As many answers as the sequence has had requests.
OFTEN = """
class TritonPythonModel:
    def initialize(self, args):
        self.seen = {}

    def execute(self, requests):
        for request in requests:
            key = request.correlation_id()
            start = request.flags() & pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START
            self.seen[key] = 1 if start else self.seen[key] + 1
            sender = request.get_response_sender()
            for number in range(self.seen[key]):
                total = pb_utils.Tensor("TOTAL", np.array([number], np.int32))
                sender.send(pb_utils.InferenceResponse([total]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""


def batching(strategy: str, name: str = "UINT64") -> str:
    idle = "max_sequence_idle_microseconds: 60000000"
    return f"sequence_batching {{ {strategy} {idle} {CONTROLS % name} }}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    models: Path = tmp_path_factory.mktemp("sequences")
    wait = "max_queue_delay_microseconds: 300000"
    direct = f"direct {{ {wait} minimum_slot_utilization: 1 }}"
    oldest = f"oldest {{ max_candidate_sequences: 8 preferred_batch_size: [ 4 ] {wait} }}"
    four = "max_batch_size: 4\n" + TENSORS
    python_models.put(models, "direct", NAMED, four + batching(direct))
    python_models.put(models, "oldest", NAMED, four + batching(oldest, "STRING"))
    python_models.put(models, "single", NAMED, TENSORS + batching("direct { }", "INT32"))
    two = "sequence_batching { direct { } } instance_group { count: 2 }"
    python_models.put(models, "alone", ALONE, TENSORS + two)
    decoupled = "sequence_batching { oldest { } } model_transaction_policy { decoupled: true }"
    python_models.put(models, "often", OFTEN, TENSORS + decoupled)
    with Server("--model-repository", models) as server:
        yield server


def step(server: Server, model: str, value: int, sequence: int | str, **flags: bool) -> Any:
    """`value` as the next of a sequence: what the model answers."""
    shape = (1,) if model in ("single", "alone") else (1, 1)
    given = tritonclient.http.InferInput("X", shape, "INT32")
    given.set_data_from_numpy(np.full(shape, value, np.int32))
    with tritonclient.http.InferenceServerClient(server.http_address) as client:
        found = client.infer(model, [given], sequence_id=sequence, **flags)
    return {
        name: None if (array := found.as_numpy(name)) is None else array.reshape(-1).tolist()
        for name in ("TOTAL", "TOLD", "WHO")
    }


def walk(server: Server, model: str, sequence: int | str, values: list[int]) -> list[Any]:
    last = len(values) - 1
    return [
        step(server, model, value, sequence, sequence_start=not i, sequence_end=i == last)
        for i, value in enumerate(values)
    ]


@pytest.mark.parametrize("model", ["direct", "oldest", "single"])
def test_a_model_is_told_where_in_its_sequence_a_request_is(server: Server, model: str) -> None:
    name = "left" if model == "oldest" else 7
    found = walk(server, model, name, [1, 2, 3])
    assert [each["TOTAL"] for each in found] == [[1], [3], [6]]
    assert [each["TOLD"] for each in found] == [[1, 0, 1], [0, 0, 1], [0, 1, 1]]
    assert {each["WHO"][0] for each in found} == {f"{name} 1".encode()}


@pytest.mark.parametrize(("model", "names"), [("direct", range(1, 5)), ("oldest", "abcd")])
def test_sequences_run_together(server: Server, model: str, names: Any) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda name: walk(server, model, name, [1, 10, 100]), names))
    for answers in found:
        assert [each["TOTAL"] for each in answers] == [[1], [11], [111]]
    sizes = {int(each["WHO"][0].split()[1]) for answers in found for each in answers}
    assert max(sizes) == 4, "a list holds the next request of each sequence"


def test_a_sequence_stays_with_one_object_of_the_model(server: Server) -> None:
    """Two objects, each with one sequence at a time; six sequences at once."""
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda name: walk(server, "alone", name, [1] * 6), range(1, 7)))
    for answers in found:
        assert [each["TOTAL"][0] for each in answers] == [1, 2, 3, 4, 5, 6]
        assert len({each["WHO"][0] for each in answers}) == 1
    assert {answers[0]["WHO"][0] for answers in found} == {b"alone_0_0", b"alone_0_1"}


def test_a_decoupled_model(server: Server) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    given = tritonclient.grpc.InferInput("X", (1,), "INT32")
    given.set_data_from_numpy(np.zeros(1, np.int32))
    found = []
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        client.start_stream(lambda result, error: answers.put(error or result))
        for number in range(3):
            client.async_stream_infer(
                "often", [given], sequence_id=5, sequence_start=not number, sequence_end=number == 2
            )
        for _ in range(1 + 2 + 3):
            found.append(answers.get(timeout=20).as_numpy("TOTAL").item())
    assert found == [0, 0, 1, 0, 1, 2]


def test_what_is_no_sequence_is_refused(server: Server) -> None:
    with pytest.raises(InferenceServerException, match="must name its own with sequence_id"):
        step(server, "direct", 1, 0)
    with pytest.raises(InferenceServerException, match="must specify the START flag"):
        step(server, "direct", 1, 99)


def test_clients_see_neither_controls_nor_their_absence(server: Server) -> None:
    told = server.get("/v2/models/direct").json()
    assert [each["name"] for each in told["inputs"]] == ["X"]
    config = server.get("/v2/models/alone/config").json()
    assert "direct" in config["sequence_batching"]
    assert config["instance_group"][0]["count"] == 2
