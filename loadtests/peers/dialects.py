"""How a row is written for a server, and its answer read: KServe v2, or what Python servers take.

Bodies are made once, before anything is measured. Each row is one request.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import orjson

from loadtests.peers.base import Array, Request
from loadtests.peers.workloads import DTYPES, Workload
from loadtests.perf_analyzer import PROTOCOLS, SHARED_MEMORY

KSERVE = ("JSON", "bytes", *PROTOCOLS, *SHARED_MEMORY)
LENGTH = "Inference-Header-Content-Length"


class KServe:
    """JSON, or with the binary tensor extension."""

    def request(self, work: Workload, protocol: str, row: Array) -> Request:
        path = f"/v2/models/{work.name}/infer"
        tensor: dict[str, Any] = {
            "name": work.input,
            "shape": list(row.shape),
            "datatype": work.datatype,
        }
        if protocol == "JSON":
            body = _json({"inputs": [tensor | {"data": row.reshape(-1)}]})
            return Request(path, body, {"Content-Type": "application/json"})
        tensor["parameters"] = {"binary_data_size": row.nbytes}
        head = _json({"inputs": [tensor], "parameters": {"binary_data_output": True}})
        headers = {"Content-Type": "application/octet-stream", LENGTH: str(len(head))}
        return Request(path, head + row.tobytes(), headers)

    def answer(self, work: Workload, headers: dict[str, str], body: bytes) -> Array:
        size = {name.lower(): value for name, value in headers.items()}.get(LENGTH.lower())
        head = json.loads(body[: int(size)] if size else body)
        (tensor,) = [each for each in head["outputs"] if each["name"] == work.output]
        dtype = DTYPES[tensor["datatype"]]
        data: Array = (
            np.frombuffer(body[int(size) :], dtype) if size else np.array(tensor["data"], dtype)
        )
        return data.reshape(tensor["shape"])


class Plain:
    """{"x": [...]} to {"y": [...]}, or an array's bytes to an array's bytes: no shape or type."""

    def request(self, work: Workload, protocol: str, row: Array) -> Request:
        if protocol == "JSON":
            body = _json({work.input: row[0]})
            return Request("/predict", body, {"Content-Type": "application/json"})
        return Request("/predict", row.tobytes(), {"Content-Type": "application/octet-stream"})

    def answer(self, work: Workload, headers: dict[str, str], body: bytes) -> Array:
        kind = {name.lower(): value for name, value in headers.items()}.get("content-type", "")
        if kind.startswith("application/json"):
            data = np.array(json.loads(body)[work.output], np.float32)
        else:
            data = np.frombuffer(body, np.float32)
        return data.reshape(1, *work.out_shape)


def _json(value: object) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
