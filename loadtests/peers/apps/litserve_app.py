"""LitServe's server: JSON, or an upload for bytes."""

# mypy: disable-error-code="import-not-found,import-untyped,misc,untyped-decorator,attr-defined"

from typing import Any

import litserve
import numpy as np
from common import BYTES, SETUP, Model
from fastapi import Request, Response


class Predictor(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self._model = Model()

    def decode_request(self, request: Request, context: dict[str, bool]) -> Any:
        data = request[self._model.input]
        context["bytes"] = hasattr(data, "file")
        return self._model.row(data.file.read() if context["bytes"] else data)

    def batch(self, inputs: list[Any]) -> Any:
        return np.stack(inputs)

    def predict(self, x: Any) -> Any:
        return self._model(x)

    def unbatch(self, output: Any) -> list[Any]:
        return list(output)

    def encode_response(self, output: Any, context: dict[str, bool]) -> Any:
        if context["bytes"]:
            return Response(output.tobytes(), media_type=BYTES)
        return {self._model.output: output.tolist()}


if __name__ == "__main__":
    api = Predictor(max_batch_size=SETUP["max_batch"], batch_timeout=SETUP["batch_seconds"])
    server = litserve.LitServer(
        api,
        accelerator="cpu",
        workers_per_device=SETUP["workers"],
        fast_queue=True,
        timeout=60,
    )
    server.run(
        host="127.0.0.1",
        port=SETUP["http"],
        num_api_servers=int(SETUP["api_servers"]),
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )
