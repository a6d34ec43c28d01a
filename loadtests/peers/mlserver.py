"""MLServer: a custom runtime with adaptive batching."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Mapping, Sequence

from loadtests.peers.base import APPS, MAX_BATCH, Launch, Setup
from loadtests.peers.dialects import KServe


class MLServer(KServe):
    key = "mlserver"
    name = "MLServer"
    protocols: Sequence[str] = ("JSON", "gRPC unary")
    settings: Mapping[str, float] = {"workers": 0, "batch_seconds": 0.001}
    chosen = (
        "adaptive batching within 1 ms; inference in the server's own process, which is quicker "
        "here than workers behind its queues; metrics, access log and compression off"
    )

    def launch(self, setup: Setup) -> Launch:
        environment = setup.write(answers=_answers(setup))
        settings = {
            "debug": False,
            "host": "127.0.0.1",
            "http_port": setup.http,
            "grpc_port": setup.grpc,
            "parallel_workers": setup.workers,
            "metrics_endpoint": None,
            "gzip_enabled": False,
        }
        work = setup.work
        model = {
            "name": work.name,
            "implementation": "mlserver_runtime.Runtime",
            "max_batch_size": MAX_BATCH,
            "max_batch_time": setup.settings["batch_seconds"],
            "inputs": [_tensor(work.input, work.datatype, work.shape)],
            "outputs": [_tensor(work.output, "FP32", work.out_shape)],
            "parameters": {"version": "1"},
        }
        shutil.copy2(APPS / "mlserver_runtime.py", setup.folder)
        (setup.folder / "settings.json").write_text(json.dumps(settings))
        (setup.folder / "model-settings.json").write_text(json.dumps(model))
        command = [str(setup.python), str(APPS / "mlserver_app.py"), "start", str(setup.folder)]
        return Launch(command, environment)


def _tensor(name: str, datatype: str, shape: tuple[int, ...]) -> dict[str, object]:
    return {"name": name, "datatype": datatype, "shape": [-1, *shape]}


def _answers(setup: Setup) -> dict[str, str]:
    """What perf_analyzer insists on being told, as messages in base64."""
    from tritonclient.grpc import (  # type: ignore[import-untyped]
        model_config_pb2,
        service_pb2,
    )

    work = setup.work
    types = {"FP32": model_config_pb2.TYPE_FP32, "INT64": model_config_pb2.TYPE_INT64}
    config = model_config_pb2.ModelConfig(name=work.name, max_batch_size=MAX_BATCH)
    config.input.add(name=work.input, data_type=types[work.datatype], dims=work.shape)
    config.output.add(name=work.output, data_type=types["FP32"], dims=work.out_shape)
    statistics = service_pb2.ModelStatisticsResponse()
    statistics.model_stats.add(name=work.name, version="1")
    messages = {
        "ModelConfig": service_pb2.ModelConfigResponse(config=config),
        "ModelStatistics": statistics,
    }
    return {
        name: base64.b64encode(message.SerializeToString()).decode()
        for name, message in messages.items()
    }
