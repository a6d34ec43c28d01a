"""Requests that take as long as they are told, for tests of queues, deadlines and faults.

They are for the model `slow` of onnx_models: `steps` products of matrices take 0.3 ms each on an
idle machine. Requests that differ in `steps` never share a batch.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import grpc
import httpx2
import numpy as np
import orjson
import tritonclient.grpc as triton
from serving import Server, until

from ds_proto import grpc_service_pb2 as pb
from ds_proto.service import METHODS, SERVICE

SECOND = 4_000
"""Steps that take a second or so: less than half of it never, on a busy machine much more."""


def json_request(steps: int = 10, rows: int = 1, **parameters: Any) -> dict[str, Any]:
    """Row r of x is [r, r, r, r], and so is row r of the answer."""
    return {
        "inputs": [
            {
                "name": "x",
                "datatype": "FP32",
                "shape": [rows, 4],
                "data": [[row] * 4 for row in range(rows)],
            },
            {"name": "steps", "datatype": "INT64", "shape": [1], "data": [steps]},
        ],
        "parameters": parameters,
    }


def post(server: Server, steps: int = 10, model: str = "slow", **options: Any) -> httpx2.Response:
    """`options`: `rows`, `headers`, and parameters of the request."""
    headers = options.pop("headers", {})
    return server.client.post(
        f"{server.http}/v2/models/{model}/infer",
        json=json_request(steps, **options),
        headers=headers,
    )


def is_right(answer: httpx2.Response, rows: int = 1) -> bool:
    """Whether it is the answer to `json_request(rows=rows)`."""
    wanted = [float(row) for row in range(rows) for _ in range(4)]
    return answer.status_code == 200 and answer.json()["outputs"][0]["data"] == wanted


def triton_inputs(steps: int = 10, rows: int = 1) -> list[triton.InferInput]:
    x = triton.InferInput("x", [rows, 4], "FP32")
    x.set_data_from_numpy(np.repeat(np.arange(rows, dtype=np.float32), 4).reshape(rows, 4))
    count = triton.InferInput("steps", [1], "INT64")
    count.set_data_from_numpy(np.array([steps]))
    return [x, count]


def message(steps: int = 10, model: str = "slow", **parameters: int) -> Any:
    """A ModelInferRequest of one row."""
    made = pb.ModelInferRequest(model_name=model)
    made.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    made.inputs.add(name="steps", datatype="INT64", shape=[1])
    made.raw_input_contents.append(np.ones((1, 4), np.float32).tobytes())
    made.raw_input_contents.append(np.array([steps], np.int64).tobytes())
    for name, value in parameters.items():
        made.parameters[name].int64_param = value
    return made


def call(channel: grpc.Channel, name: str) -> grpc.UnaryUnaryMultiCallable[Any, Any]:
    """A unary method of the service; unlike tritonclient's it shows the trailers."""
    method = METHODS[name]
    return channel.unary_unary(
        f"/{SERVICE}/{name}", method.request.SerializeToString, method.response.FromString
    )


def trailers(error: grpc.RpcError) -> dict[str, str]:
    return dict(error.trailing_metadata() or ())


def statistics(server: Server, model: str = "slow") -> dict[str, Any]:
    found: dict[str, Any] = server.get(f"/v2/models/{model}/stats").json()["model_stats"][0]
    return found


def load(server: Server, model: str = "slow") -> float:
    """Requests that wait or run, over those that can run at once."""
    return server.metric("ds_load", model=model)


def waiting(server: Server, model: str = "slow") -> int:
    """Requests that wait."""
    return int(server.metric("nv_inference_pending_request_count", model=model))


def until_waiting(server: Server, count: int, model: str = "slow") -> None:
    until(lambda: waiting(server, model) == count, f"not {count} requests wait", 20, server.log)


@contextlib.contextmanager
def busy(
    server: Server, steps: int = 3 * SECOND // 2, model: str = "slow"
) -> Iterator[Future[httpx2.Response]]:
    """The engine runs one long request throughout; yields its answer-to-be."""
    with ThreadPoolExecutor(1) as pool:
        before = load(server, model)
        answer = pool.submit(post, server, steps, model)
        until(lambda: load(server, model) > before, "the engine is idle", 20, server.log)
        yield answer


def send_raw(server: Server, body: dict[str, Any], model: str = "slow") -> socket.socket:
    """Send a request on a socket of its own, without waiting for its answer."""
    host, _, port = server.http_address.rpartition(":")
    content = orjson.dumps(body)
    head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}"
    made = socket.create_connection((host, int(port)))
    made.sendall(head.encode() + b"\r\n\r\n" + content)
    return made


class Clients:
    """Threads that send quick requests one after the other on kept connections, until stopped.

    `failures` has what each failed request got: a status and a text, or the client's error.
    """

    def __init__(self, server: Server, count: int, steps: int = 20, model: str = "slow") -> None:
        self._url = f"{server.http}/v2/models/{model}/infer"
        self._steps = steps
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(count)]
        self.answered = 0
        self.failures: list[tuple[int, str]] = []
        self.broken: list[Exception] = []

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        request = json_request(self._steps)
        with httpx2.Client(timeout=60) as client:
            while not self._stop.is_set():
                try:
                    answer = client.post(self._url, json=request)
                except httpx2.ConnectError:
                    return  # the server is gone: nothing was sent
                except httpx2.TransportError as error:
                    self.broken.append(error)
                    return
                if is_right(answer):
                    self.answered += 1
                else:
                    self.failures.append((answer.status_code, answer.text))
