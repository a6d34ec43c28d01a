"""Ray Serve's deployment, batched by @serve.batch, on a Ray of its own on the loopback."""

# mypy: disable-error-code="import-not-found,import-untyped,misc,untyped-decorator,attr-defined"

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import ray
from common import BYTES, SETUP, Model
from ray import serve
from starlette.requests import Request
from starlette.responses import Response


@serve.deployment(
    num_replicas=SETUP["workers"], max_ongoing_requests=256, ray_actor_options={"num_cpus": 0.1}
)
class Predictor:
    def __init__(self) -> None:
        self._model = Model()

    @serve.batch(max_batch_size=SETUP["max_batch"], batch_wait_timeout_s=0)
    async def predict(self, rows: list[Any]) -> list[Any]:
        return list(await asyncio.to_thread(self._model, np.stack(rows)))

    async def __call__(self, request: Request) -> Response:
        body = await request.body()
        if request.headers["content-type"] == BYTES:
            output = await self.predict(self._model.row(body))
            return Response(output.tobytes(), media_type=BYTES)
        output = await self.predict(self._model.row(orjson.loads(body)[self._model.input]))
        answer = {self._model.output: output}
        return Response(
            orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json"
        )


if __name__ == "__main__":
    ray.init(
        address="local",
        num_cpus=SETUP["cores"],
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        _temp_dir=str(Path.cwd()),
        object_store_memory=100_000_000,
        log_to_driver=False,
    )
    # With direct ingress the replica has the port, and the proxy another.
    port = SETUP["grpc"] if SETUP["direct"] else SETUP["http"]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(Predictor.bind(), route_prefix="/predict")
    signal.pause()
