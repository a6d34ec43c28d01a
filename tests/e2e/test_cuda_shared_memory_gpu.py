"""Triton's client puts tensors on a GPU, and takes them from there: answers are the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_models
import pytest
import tritonclient.grpc as triton
from serving import Server


def require_gpu() -> None:
    ort = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        pytest.skip("needs onnxruntime-gpu and an NVIDIA GPU")


def test_answers_are_those_of_tensors_that_are_sent(tmp_path: Path) -> None:
    require_gpu()
    cuda = pytest.importorskip("tritonclient.utils.cuda_shared_memory")
    model = onnx_models.mlp(tmp_path / "mlp.onnx")
    batch = np.random.default_rng(0).random((5, 64), np.float32)
    given = ("--device", "cuda:0", "--engine", "onnxruntime")
    with (
        Server("--model", model, *given) as server,
        triton.InferenceServerClient(server.grpc) as client,
    ):
        about = client.get_model_metadata("mlp")
        asked = triton.InferInput(about.inputs[0].name, batch.shape, "FP32")
        asked.set_data_from_numpy(batch)
        wanted = client.infer("mlp", [asked]).as_numpy(about.outputs[0].name)
        places = {"in": batch, "out": wanted}
        regions = {n: cuda.create_shared_memory_region(n, a.nbytes, 0) for n, a in places.items()}
        try:
            cuda.set_shared_memory_region(regions["in"], [batch])
            for name, region in regions.items():
                handle = cuda.get_raw_handle(region)
                client.register_cuda_shared_memory(name, handle, 0, places[name].nbytes)
            asked.set_shared_memory("in", batch.nbytes)
            output = triton.InferRequestedOutput(about.outputs[0].name)
            output.set_shared_memory("out", wanted.nbytes)
            client.infer("mlp", [asked], outputs=[output])
            found = cuda.get_contents_as_numpy(regions["out"], np.float32, list(wanted.shape))
            np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)
            client.unregister_cuda_shared_memory()
        finally:
            for region in regions.values():
                cuda.destroy_shared_memory_region(region)
