"""Tensors in CUDA shared memory, as Triton's own client makes it: the same answers as when they are
sent, and how fast.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from loadtests import server
from loadtests.gpu import models
from loadtests.gpu.parts import Part

MODEL, KIND, OUTPUTS = "resnet50", "tf32", 1000


def measure(part: Part) -> None:
    part.keep(kinds={})
    for name in part.engines:
        try:
            found = _one(part, name)
        except Exception as error:
            found = {"failed": f"{type(error).__name__}: {error}"[-1500:]}
        part.keep(kinds=part.found["kinds"] | {name: found})


def _one(part: Part, name: str) -> dict[str, Any]:
    import tritonclient.grpc as triton

    rows = 128 if part.gpu else 2
    root = part.repository(name, MODEL, models.path_of(part.folder, KIND, name), rows)
    given = ["--model", f"{MODEL}={root / MODEL}", *part.arguments(name, part.device())]
    ((tensor, batch),) = models.batch(part.folder, name, MODEL, rows).items()
    with (
        server.started(given, part.log(name)) as there,
        triton.InferenceServerClient(there.grpc) as client,
    ):
        output = client.get_model_metadata(MODEL).outputs[0].name
        asked = triton.InferInput(tensor, batch.shape, "FP32")
        asked.set_data_from_numpy(batch)
        sent = client.infer(MODEL, [asked]).as_numpy(output)
        if not part.gpu:
            return _refused(client) | {"sent": str(sent.shape)}
        found = _shared(part, client, (tensor, output), batch, sent)
        found["sent, images/s"] = _rate(client, [asked], None, rows, part.seconds)
        return found


def _refused(client: Any) -> dict[str, Any]:
    """What a client is told where there is no GPU."""
    from tritonclient.utils import InferenceServerException

    try:
        client.register_cuda_shared_memory("pictures", "AA==", 0, 64)
    except InferenceServerException as error:
        return {"register": error.message()}
    return {"register": "was ACCEPTED"}


def _shared(
    part: Part, client: Any, names: tuple[str, str], batch: Any, sent: Any
) -> dict[str, Any]:
    import tritonclient.grpc as triton
    from tritonclient.utils import cuda_shared_memory as cuda

    number, rows = part.number, len(batch)
    given = cuda.create_shared_memory_region("pictures", batch.nbytes, number)
    taken = cuda.create_shared_memory_region("answers", sent.nbytes, number)
    try:
        cuda.set_shared_memory_region(given, [batch])
        for name, region, size in (
            ("pictures", given, batch.nbytes),
            ("answers", taken, sent.nbytes),
        ):
            client.register_cuda_shared_memory(name, cuda.get_raw_handle(region), number, size)
        asked = triton.InferInput(names[0], batch.shape, "FP32")
        asked.set_shared_memory("pictures", batch.nbytes)
        wanted = triton.InferRequestedOutput(names[1])
        wanted.set_shared_memory("answers", sent.nbytes)
        found = {"registered": str(client.get_cuda_shared_memory_status(as_json=True))[:300]}
        scale = float(np.abs(sent).max())
        both = client.infer(MODEL, [asked], outputs=[wanted])
        assert both.as_numpy(names[1]) is None or both.as_numpy(names[1]).size == 0
        there = cuda.get_contents_as_numpy(taken, np.float32, list(sent.shape))
        found["both on the GPU, largest error"] = f"{np.abs(there - sent).max() / scale:.6f}"
        input_only = client.infer(MODEL, [asked]).as_numpy(names[1])
        found["inputs alone, largest error"] = f"{np.abs(input_only - sent).max() / scale:.6f}"
        found["shared, images/s"] = _rate(client, [asked], [wanted], rows, part.seconds)
        client.unregister_cuda_shared_memory()
        found["after unregister"] = _after(client, asked)
        return found
    finally:
        cuda.destroy_shared_memory_region(given)
        cuda.destroy_shared_memory_region(taken)


def _after(client: Any, asked: Any) -> str:
    from tritonclient.utils import InferenceServerException

    try:
        client.infer(MODEL, [asked])
    except InferenceServerException as error:
        return str(error.message())[:150]
    return "was ANSWERED"


def _rate(client: Any, asked: Any, wanted: Any, rows: int, seconds: float) -> float:
    """By one client, one request after the other."""
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        client.infer(MODEL, asked, outputs=wanted)
        done += rows
    return round(done / (time.perf_counter() - began), 1)
