"""BentoML."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np

from loadtests.peers.base import APPS, Array, Launch, Request, Setup
from loadtests.peers.dialects import Plain
from loadtests.peers.workloads import Workload


class BentoML(Plain):
    key = "bentoml"
    name = "BentoML"
    protocols: Sequence[str] = ("JSON", "bytes")
    settings: Mapping[str, float] = {"workers": 2}
    chosen = (
        "adaptive batching, two workers, metrics and access log off; bytes come as a file, its "
        "own way for binary bodies, and are not batched"
    )

    def launch(self, setup: Setup) -> Launch:
        environment = setup.write()
        environment |= {"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(setup.folder / "home")}
        command = [setup.program("bentoml"), "serve", "bentoml_app:Predictor"]
        command += ["--working-dir", str(APPS), "--host", "127.0.0.1", "--port", str(setup.http)]
        return Launch(command, environment)

    def request(self, work: Workload, protocol: str, row: Array) -> Request:
        if protocol == "JSON":
            body = json.dumps({"x": row.tolist()}).encode()
            return Request("/predict", body, {"Content-Type": "application/json"})
        plain = super().request(work, protocol, row)
        return Request("/predict_file", plain.body, plain.headers)

    def answer(self, work: Workload, headers: dict[str, str], body: bytes) -> Array:
        if "json" in {name.lower(): value for name, value in headers.items()}["content-type"]:
            return np.array(json.loads(body), np.float32).reshape(1, *work.out_shape)
        return super().answer(work, headers, body)
