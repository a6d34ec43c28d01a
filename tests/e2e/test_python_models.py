"""Models in Python, asked by an unmodified tritonclient."""

from __future__ import annotations

import json
import queue
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx_models
import pytest
import tritonclient.grpc
import tritonclient.http
from python_models import SUM, SUM_CONFIG, put, tensors
from serving import Server, gone, until
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

TEXTS = """
class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            given = pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy()
            turned = np.array([each[::-1] for each in given.reshape(-1)], np.object_)
            outputs = [pb_utils.Tensor("OUT", turned.reshape(given.shape))]
            responses.append(pb_utils.InferenceResponse(output_tensors=outputs))
        return responses
"""

FAILING = """
class TritonPythonModel:
    def execute(self, requests):
        how = pb_utils.get_input_tensor_by_name(requests[0], "HOW").as_numpy()[0].decode()
        if how == "raise":
            raise ValueError("it went wrong")
        if how == "error":
            error = pb_utils.TritonError("not like this", pb_utils.TritonError.INVALID_ARG)
            return [pb_utils.InferenceResponse(error=error)]
        if how == "few":
            return []
        if how == "type":
            return ["text"]
        if how == "nothing":
            return None
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.zeros(1, np.int32))])]
"""

COUNTED = """
class TritonPythonModel:
    def execute(self, requests):
        sender = requests[0].get_response_sender()
        count = int(pb_utils.get_input_tensor_by_name(requests[0], "COUNT").as_numpy()[0])
        threading.Thread(target=self.send, args=(sender, count), daemon=True).start()
        return None

    def send(self, sender, count):
        for number in range(count):
            if sender.is_cancelled():
                pb_utils.Logger.log_info(f"cancelled after {number}")
                break
            output = pb_utils.Tensor("NUMBER", np.array([number], np.int32))
            sender.send(pb_utils.InferenceResponse([output]))
            if count > 1000:
                time.sleep(0.01)
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""

CALLING = """
class TritonPythonModel:
    def execute(self, requests):
        return [self.one(request) for request in requests]

    def one(self, request):
        model = pb_utils.get_input_tensor_by_name(request, "MODEL").as_numpy()[0].decode()
        given = pb_utils.get_input_tensor_by_name(request, "X").as_numpy()
        call = pb_utils.InferenceRequest(
            model_name=model, requested_output_names=["y"], inputs=[pb_utils.Tensor("x", given)]
        )
        response = call.exec()
        if response.has_error():
            return pb_utils.InferenceResponse(error=response.error())
        found = pb_utils.get_output_tensor_by_name(response, "y").as_numpy()
        return pb_utils.InferenceResponse([pb_utils.Tensor("Y", found)])
"""

GATHERING = """
class TritonPythonModel:
    async def execute(self, requests):
        responses = []
        for request in requests:
            count = pb_utils.get_input_tensor_by_name(request, "COUNT")
            calls = [
                pb_utils.InferenceRequest(
                    model_name="counted", requested_output_names=["NUMBER"], inputs=[count]
                ).async_exec(decoupled=True)
                for _ in range(3)
            ]
            total = 0
            for answers in await asyncio.gather(*calls):
                for answer in answers:
                    if answer.output_tensors():
                        total += int(answer.output_tensors()[0].as_numpy()[0])
            output = pb_utils.Tensor("TOTAL", np.array([total], np.int32))
            responses.append(pb_utils.InferenceResponse([output]))
        return responses
"""

CALLING_BACK = """
class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            left = pb_utils.get_input_tensor_by_name(request, "LEFT").as_numpy()
            if left[0]:
                call = pb_utils.InferenceRequest(
                    model_name="OTHER",
                    requested_output_names=["OUT"],
                    inputs=[pb_utils.Tensor("LEFT", left - 1)],
                )
                answer = call.exec()
                if answer.has_error():
                    raise pb_utils.TritonModelException(answer.error().message())
                left = answer.output_tensors()[0].as_numpy() + 1
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", left)]))
        return responses
"""

RELAYING = """
class TritonPythonModel:
    def initialize(self, args):
        family = pb_utils.MetricFamily("relayed_bytes", "All.", pb_utils.MetricFamily.COUNTER)
        self.metric = family.Metric(labels={"way": "there"})

    def execute(self, requests):
        return [self.one(request) for request in requests]

    def one(self, request):
        call = pb_utils.InferenceRequest(
            model_name="texts", requested_output_names=["OUT"], inputs=request.inputs()
        )
        response = call.exec()
        self.metric.increment(len(response.output_tensors()[0].as_numpy()[0]))
        return response
"""

TELLING = """
class TritonPythonModel:
    def execute(self, requests):
        return [self.one(request) for request in requests]

    def one(self, request):
        told = {"text": "a b", "number": -(2**40), "flag": True, "id": "own"}
        output = pb_utils.Tensor("Y", request.inputs()[0].as_numpy())
        return pb_utils.InferenceResponse([output], parameters=told)
"""

TELLING_OFTEN = """
class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            for number in range(3):
                output = pb_utils.Tensor("Y", np.array([number], np.int32))
                told = {"number": number, "triton_final_response": True}
                sender.send(pb_utils.InferenceResponse([output], parameters=told))
            last = pb_utils.InferenceResponse([], parameters={"number": 3})
            sender.send(last, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""

HEARING = """
class TritonPythonModel:
    def execute(self, requests):
        return [self.one(request) for request in requests]

    def one(self, request):
        call = pb_utils.InferenceRequest(
            model_name="telling", requested_output_names=["Y"], inputs=request.inputs()
        )
        told = json.loads(call.exec().parameters())
        text = np.array([json.dumps(told)], np.object_)
        return pb_utils.InferenceResponse([pb_utils.Tensor("TOLD", text)])
"""

COMPLETING = """
class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        config.set_max_batch_size(8)
        config.set_dynamic_batching()
        config.add_input({"name": "X", "data_type": "TYPE_INT64", "dims": [-1]})
        config.add_output({"name": "Y", "data_type": "TYPE_INT64", "dims": [-1]})
        return config

    def execute(self, requests):
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("Y", request.inputs()[0].as_numpy() * 2)])
            for request in requests
        ]
"""

SAYING = """
class TritonPythonModel:
    def initialize(self, args):
        self.args = args

    def execute(self, requests):
        responses = []
        for request in requests:
            said = {
                "id": request.request_id(),
                "parameters": json.loads(request.parameters()),
                "sequence": request.correlation_id(),
                "flags": request.flags(),
                "wanted": list(request.requested_output_names()),
                "config": json.loads(self.args["model_config"])["parameters"],
                **{key: self.args[key] for key in self.args if key != "model_config"},
                "pid": os.getpid(),
            }
            text = np.array([json.dumps(said)], np.object_)
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("SAID", text)]))
        time.sleep(0.2)
        return responses

    def finalize(self):
        pb_utils.Logger.log_info("finalized " + self.args["model_instance_name"])
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    models = tmp_path_factory.mktemp("python")
    joined = "max_batch_size: 8\ndynamic_batching { max_queue_delay_microseconds: 300000 }"
    put(models, "sum", SUM, SUM_CONFIG)
    put(models, "joined", SUM, joined + SUM_CONFIG)
    put(models, "single", SUM, "max_batch_size: 8" + SUM_CONFIG)
    put(models, "texts", TEXTS, tensors("TEXT STRING -1", outputs="OUT STRING -1"))
    put(models, "failing", FAILING, tensors("HOW STRING 1", outputs="OUT INT32 1"))
    decoupled = "{ decoupled: true }"
    put(
        models, "counted", COUNTED,
        tensors("COUNT INT32 1", outputs="NUMBER INT32 1", model_transaction_policy=decoupled),
    )  # fmt: skip
    put(models, "calling", CALLING, tensors("MODEL STRING 1", "X FP32 1,64", outputs="Y FP32 1,8"))
    put(models, "gathering", GATHERING, tensors("COUNT INT32 1", outputs="TOTAL INT32 1"))
    for name, other in (("ping", "pong"), ("pong", "ping")):
        config = tensors("LEFT INT32 1", outputs="OUT INT32 1", instance_group="{ count: 2 }")
        put(models, name, CALLING_BACK.replace("OTHER", other), config)
    told = tensors("Y INT32 1", outputs="Y INT32 1")
    put(models, "telling", TELLING, told)
    put(models, "remembered", TELLING, told + "response_cache { enable: true }")
    put(models, "hearing", HEARING, tensors("Y INT32 1", outputs="TOLD STRING 1"))
    often = f"model_transaction_policy {decoupled}"
    put(models, "telling_often", TELLING_OFTEN, told + often)
    put(models, "completing", COMPLETING)
    put(models, "relaying", RELAYING, tensors("TEXT STRING -1", outputs="OUT STRING -1"))
    said = '{ key: "mark" value { string_value: "7" } }'
    config = tensors("X INT32 1", outputs="SAID STRING 1", parameters=said)
    put(models, "saying", SAYING, config + "instance_group { count: 3 }")
    onnx_models.mlp(models / "mlp" / "1" / "model.onnx")
    flags = (
        "--model-repository",
        models,
        "--model-control-mode",
        "explicit",
        "--open-control",
        "--load-model",
        "*",
        "--response-cache-byte-size",
        "1000000",
    )
    with Server(*flags, "--gateways", "2") as running:
        yield running


def ask(server: Server, model: str, protocol: str = "http", **given: np.ndarray):
    """The answer to a request with these tensors."""
    module = tritonclient.http if protocol == "http" else tritonclient.grpc
    address = server.http_address if protocol == "http" else server.grpc
    with module.InferenceServerClient(address) as client:
        return client.infer(model, _inputs(module, given))


def _inputs(module, given: dict[str, np.ndarray]) -> list:
    made = []
    for name, array in given.items():
        one = module.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
        one.set_data_from_numpy(array)
        made.append(one)
    return made


def stream(server: Server, model: str, given: dict[str, np.ndarray], **options) -> list:
    """All answers of one request over a stream, with that which is marked as the last."""
    answers: queue.Queue = queue.Queue()
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        client.start_stream(lambda result, error: answers.put(error or result))
        client.async_stream_infer(
            model, _inputs(tritonclient.grpc, given), enable_empty_final_response=True, **options
        )
        found = []
        while not found or not _is_last(found[-1]):
            found.append(answers.get(timeout=20))
        return found


def _is_last(answer) -> bool:
    if isinstance(answer, InferenceServerException):
        return True
    return answer.get_response().parameters["triton_final_response"].bool_param


def row(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_numbers(server: Server, protocol: str) -> None:
    answer = ask(server, "sum", protocol, A=row(1, 2, 3, 4), B=row(10, 20, 30, 40))
    np.testing.assert_array_equal(answer.as_numpy("SUM"), row(11, 22, 33, 44))


@pytest.mark.parametrize(("model", "together"), [("joined", True), ("single", False)])
def test_only_dynamic_batching_joins_requests(server: Server, model: str, together: bool) -> None:
    def one(number: int) -> int:
        a = np.full((1, 4), number, np.float32)
        answer = ask(server, model, A=a, B=a)
        np.testing.assert_array_equal(answer.as_numpy("SUM"), 2 * a)
        return int(answer.as_numpy("TOGETHER")[0, 0])

    with ThreadPoolExecutor(4) as threads:
        assert (max(threads.map(one, range(4))) > 1) is together


def test_texts(server: Server) -> None:
    given = np.array([b"abc", "äö".encode(), b"", b"\0x"], np.object_)
    answer = ask(server, "texts", TEXT=given).as_numpy("OUT")
    assert answer.tolist() == [each[::-1] for each in given]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raise", "model 'failing_0_0', message: ValueError: it went wrong"),
        ("error", "not like this"),
        ("few", "0 responses to 1 requests"),
        ("type", "a list with str"),
        ("nothing", "no final response"),
    ],
)
def test_errors_are_told_without_a_traceback(server: Server, how: str, message: str) -> None:
    for protocol in ("http", "grpc"):
        with pytest.raises(InferenceServerException) as caught:
            ask(server, "failing", protocol, HOW=np.array([how.encode()], np.object_))
        assert message in caught.value.message()
        assert "Traceback" not in caught.value.message()
        assert ".py" not in caught.value.message()
    assert ask(server, "failing", HOW=np.array([b"fine"], np.object_)).as_numpy("OUT") == [0]


@pytest.mark.parametrize("count", [0, 1, 20])
def test_a_decoupled_model_answers_often(server: Server, count: int) -> None:
    answers = stream(server, "counted", {"COUNT": np.array([count], np.int32)}, request_id="9")
    assert [int(one.as_numpy("NUMBER")[0]) for one in answers[:-1]] == list(range(count))
    assert not answers[-1].get_response().outputs
    assert {one.get_response().id for one in answers} == {"9"}


def test_the_time_to_the_first_answer_is_told_once_for_a_request(server: Server) -> None:
    """Of some 20 answers, one every 10 ms."""
    name, about = "nv_inference_first_response_histogram_ms", {"model": "counted", "version": "1"}

    def told() -> tuple[float, float, float]:
        whole = server.metric("ds_request_seconds_sum", **about)
        return (
            server.metric(f"{name}_count", **about),
            server.metric(f"{name}_sum", **about),
            whole,
        )

    before = told()
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        answers: queue.Queue = queue.Queue()
        client.start_stream(lambda result, error: answers.put(error or result))
        client.async_stream_infer(
            "counted", _inputs(tritonclient.grpc, {"COUNT": np.array([1020], np.int32)})
        )
        for _ in range(20):
            answers.get(timeout=20)
        client.stop_stream(cancel_requests=True)
    until(lambda: told()[0] > before[0], "nothing was told", 10)
    until(lambda: told()[2] > before[2], "the request has not ended", 10)
    count, ms, whole = (now - then for now, then in zip(told(), before, strict=True))
    assert count == 1
    assert 0 < ms < whole * 1e3 / 2
    ask(server, "texts", TEXT=np.array([b"a"], np.object_))
    about = {"model": "texts", "version": "1"}
    assert server.metric(f"{name}_count", **about) == server.metric(
        "ds_request_seconds_count", **about
    )
    assert server.metric(f"{name}_bucket", le="5000.0", **about) > 0


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_decoupled_model_is_refused_where_there_is_one_answer(
    server: Server, protocol: str
) -> None:
    with pytest.raises(InferenceServerException, match="is decoupled"):
        ask(server, "counted", protocol, COUNT=np.array([1], np.int32))


def test_a_decoupled_model_as_events(server: Server) -> None:
    url = f"{server.http}/v2/models/counted/generate_stream"
    answered = server.client.post(url, json={"COUNT": [3]})
    events = [line for line in answered.text.splitlines() if line.startswith("data: ")]
    assert ['"NUMBER":0' in events[0], '"NUMBER":2' in events[2], len(events)] == [True, True, 3]


def test_the_model_learns_that_the_client_has_gone(server: Server) -> None:
    answers: queue.Queue = queue.Queue()
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        client.start_stream(lambda result, error: answers.put(error or result))
        given = {"COUNT": np.array([100_000], np.int32)}
        client.async_stream_infer("counted", _inputs(tritonclient.grpc, given))
        answers.get(timeout=20)
        client.stop_stream(cancel_requests=True)
    until(lambda: "cancelled after" in server.log(), "the model was not told", details=server.log)


def test_a_model_calls_another(server: Server) -> None:
    x = np.ones((1, 64), np.float32)
    direct = ask(server, "mlp", x=x).as_numpy("y")
    called = ask(server, "calling", MODEL=np.array([b"mlp"], np.object_), X=x).as_numpy("Y")
    np.testing.assert_allclose(called, direct, rtol=1e-5)


def test_large_tensors_and_a_metric_of_the_model(server: Server) -> None:
    given = np.array([bytes(range(250)) * 2000], np.object_)
    assert ask(server, "texts", TEXT=given).as_numpy("OUT")[0] == given[0][::-1]
    before = server.metric("relayed_bytes")
    assert ask(server, "relaying", TEXT=given).as_numpy("OUT")[0] == given[0][::-1]
    assert server.metric("relayed_bytes", way="there") == before + len(given[0])
    assert "# TYPE relayed_bytes counter" in server.get("/metrics").text


def test_an_error_of_the_called_model_is_told(server: Server) -> None:
    x = np.ones((1, 64), np.float32)
    with pytest.raises(InferenceServerException, match="no model 'nobody'") as caught:
        ask(server, "calling", MODEL=np.array([b"nobody"], np.object_), X=x)
    assert caught.value.status() == "404"


def test_several_calls_at_a_time_of_a_decoupled_model(server: Server) -> None:
    answer = ask(server, "gathering", COUNT=np.array([5], np.int32))
    assert answer.as_numpy("TOTAL").tolist() == [30]


def test_models_that_call_each_other_while_both_are_busy(server: Server) -> None:
    def one(name: str) -> int:
        return int(ask(server, name, LEFT=np.array([1], np.int32)).as_numpy("OUT")[0])

    # Two requests in each model at most, as each has two instances, one of which stays free.
    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(one, ["ping", "pong"] * 10)) == [1] * 20


def test_the_configuration_may_come_from_the_model(server: Server) -> None:
    given = np.array([[1, 2], [3, 4]], np.int64)
    assert (ask(server, "completing", X=given).as_numpy("Y") == given * 2).all()
    with tritonclient.http.InferenceServerClient(server.http_address) as client:
        config = client.get_model_config("completing")
    assert (config["max_batch_size"], config["backend"]) == (8, "python")
    assert [(t["name"], t["dims"]) for t in config["input"]] == [("X", [-1])]


def test_what_a_model_is_told(server: Server) -> None:
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        answer = client.infer(
            "saying",
            _inputs(tritonclient.grpc, {"X": np.zeros(1, np.int32)}),
            request_id="a1",
            sequence_id=5,
            sequence_start=True,
            parameters={"mine": "yes", "n": 3},
            outputs=[tritonclient.grpc.InferRequestedOutput("SAID")],
        )
    said = json.loads(answer.as_numpy("SAID")[0])
    assert (said["id"], said["sequence"], said["flags"]) == ("a1", 5, 1)
    assert said["parameters"] == {"mine": "yes", "n": 3}
    assert (said["wanted"], said["config"]) == (["SAID"], {"mark": {"string_value": "7"}})
    assert (said["model_name"], said["model_version"]) == ("saying", "1")
    assert said["model_repository"].endswith("/saying")
    assert said["model_instance_kind"] == "CPU"


TOLD = {"text": "a b", "number": -(2**40), "flag": True, "id": "own"}


def plain(parameters) -> dict[str, object]:
    """Of a message of gRPC's."""
    return {name: getattr(each, each.WhichOneof("parameter_choice")) for name, each in parameters}


@pytest.mark.parametrize("model", ["telling", "remembered"])
def test_the_client_is_told_the_answers_parameters(server: Server, model: str) -> None:
    for _ in range(2):  # the second answer is out of the cache, where there is one
        answer = ask(server, model, Y=np.ones(1, np.int32))
        assert answer.get_response()["parameters"] == TOLD
        answer = ask(server, model, "grpc", Y=np.ones(1, np.int32))
        assert plain(answer.get_response().parameters.items()) == TOLD
    asked = server.client.post(f"{server.http}/v2/models/{model}/generate", json={"Y": 1})
    assert asked.json() == {"model_name": model, "model_version": "1", "Y": 1} | TOLD
    answer = ask(server, "texts", TEXT=np.array([b"a"], np.object_))
    assert "parameters" not in answer.get_response()
    hits = server.metric("nv_cache_num_hits_per_model", model=model)
    assert hits == (4 if model == "remembered" else 0)


def test_each_answer_has_parameters_of_its_own(server: Server) -> None:
    answers = stream(server, "telling_often", {"Y": np.zeros(1, np.int32)})
    told = [plain(answer.get_response().parameters.items()) for answer in answers]
    last = [number == 3 for number in range(4)]
    assert [each["number"] for each in told] == [0, 1, 2, 3]
    assert [each["triton_final_response"] for each in told] == last
    route = f"{server.http}/v2/models/telling_often/generate_stream"
    events = server.client.post(route, json={"Y": 0}).text.strip().split("\n\n")
    told = [json.loads(event.removeprefix("data: ")) for event in events]
    assert [each["number"] for each in told] == [0, 1, 2, 3]
    assert [each.get("Y") for each in told] == [0, 1, 2, None]


def test_a_model_is_told_the_parameters_of_those_it_calls(server: Server) -> None:
    answer = ask(server, "hearing", Y=np.zeros(1, np.int32))
    assert json.loads(answer.as_numpy("TOLD")[0]) == TOLD


def test_instances_run_side_by_side(server: Server) -> None:
    def one(_: int) -> str:
        answer = ask(server, "saying", X=np.zeros(1, np.int32))
        return str(json.loads(answer.as_numpy("SAID")[0])["model_instance_name"])

    with ThreadPoolExecutor(3) as threads:
        assert set(threads.map(one, range(9))) == {f"saying_0_{index}" for index in range(3)}


def test_a_model_unloads(server: Server) -> None:
    pid = server.worker("sum")
    with tritonclient.http.InferenceServerClient(server.http_address) as client:
        client.unload_model("sum")
        until(lambda: gone(pid), "its process is still there", details=server.log)
        client.load_model("sum")
    assert ask(server, "sum", A=row(1, 1, 1, 1), B=row(1, 1, 1, 1)).as_numpy("SUM")[0] == 2


def test_a_new_model_is_known_to_callers(server: Server) -> None:
    x = np.ones((1, 64), np.float32)
    model = np.array([b"mlp"], np.object_)
    with tritonclient.http.InferenceServerClient(server.http_address) as client:
        ask(server, "calling", MODEL=model, X=x)
        client.unload_model("mlp")
        with pytest.raises(InferenceServerException, match="no model 'mlp'"):
            ask(server, "calling", MODEL=model, X=x)
        client.load_model("mlp")
    assert ask(server, "calling", MODEL=model, X=x).as_numpy("Y").shape == (1, 8)


def test_what_a_client_sends_is_never_run(server: Server, tmp_path: Path) -> None:
    code = f"open({str(tmp_path / 'ran')!r}, 'w')".encode()
    with tritonclient.http.InferenceServerClient(server.http_address) as client:
        with pytest.raises(InferenceServerException, match="could hold code"):
            client.load_model(
                "mine", config='{"backend": "python"}', files={"file:1/model.py": code}
            )
        config = '{"backend": "python", "default_model_filename": "model.txt"}'
        with pytest.raises(InferenceServerException, match="a text file"):
            client.load_model("mine", config=config, files={"file:1/model.txt": code})
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_finalize_is_called_at_the_end(tmp_path: Path) -> None:
    put(tmp_path, "saying", SAYING, tensors("X INT32 1", outputs="SAID STRING 1"))
    with Server("--model", tmp_path / "saying") as server:
        ask(server, "saying", X=np.zeros(1, np.int32))
        assert server.stop() == 0
        assert "finalized saying_0_0" in server.log()
    assert [path.name for path in (tmp_path / "saying" / "1").iterdir()] == ["model.py"]


BAD = {
    "syntax": ("class TritonPythonModel\n", r"model\.py:12: SyntaxError"),
    "imports": (
        "import nowhere_to_be_found\n",
        r"model\.py:12: ModuleNotFoundError: No module named",
    ),
    "raises": (
        "class TritonPythonModel:\n    def initialize(self, args):\n        1 / 0\n"
        "    def execute(self, requests): ...\n",
        r"model\.py:14: initialize: ZeroDivisionError: division by zero",
    ),
    "nameless": ("class Model: ...\n", "no class TritonPythonModel"),
}
"""Models that cannot be loaded, and what is said of them."""


@pytest.fixture(scope="module")
def complaints(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Output and log of a server of such models, which ends by itself."""
    folder = tmp_path_factory.mktemp("bad")
    for name, (code, _) in BAD.items():
        put(folder, name, code, SUM_CONFIG)
    server = Server("--model-repository", folder).start()
    try:
        server.process.wait(60)
        return server.output(), server.log()
    finally:
        server.close()


@pytest.mark.parametrize("name", BAD)
def test_a_model_that_cannot_be_loaded_says_where_it_fails(
    complaints: tuple[str, str], name: str
) -> None:
    output, log = complaints
    assert "Traceback" not in output
    assert re.search(rf"model {name} has failed: .*{BAD[name][1]}", log), log
