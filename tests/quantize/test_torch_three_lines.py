"""The shortest way from a PyTorch module to a served, quantized model."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http
from digits import held_out, trained

import ds_quantize

SERVE = """
from ds_quantize import quantize_dynamic
from ds_serve.api import InferenceServer

if __name__ == "__main__":
    quantize_dynamic("model.pt").save("quantized_model.pt")
    server = InferenceServer(model_path="quantized_model.pt", device="cpu", batch_size=32)
    server.run(host="127.0.0.1", port=0, grpc_port=0)
"""

READY = re.compile(r"HTTP http://(\S+) ")
SECONDS = 150


@pytest.mark.slow
def test_export_quantize_serve(tmp_path: Path) -> None:
    model = trained()
    ds_quantize.export(model.module, tmp_path / "model.pt", example=model.example["image"])
    (tmp_path / "serve.py").write_text(SERVE)
    environment = {k: v for k, v in os.environ.items() if k != "PROMETHEUS_MULTIPROC_DIR"}
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "serve.py"],
            cwd=tmp_path,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        )
    try:
        _ask(_address(process, log))
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, log.read_text()
    assert (tmp_path / "quantized_model.pt").stat().st_size < (tmp_path / "model.pt").stat().st_size


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        if found := READY.search(log.read_text()):
            return found[1]
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    raise AssertionError(f"not ready: {log.read_text()}")


def _ask(address: str) -> None:
    rows = held_out()
    images = rows["image"][:64]
    client = tritonclient.http.InferenceServerClient(address)
    tensor = tritonclient.http.InferInput("image", list(images[:32].shape), "FP32")
    found = []
    for part in np.split(images, 2):
        tensor.set_data_from_numpy(part)
        answer = client.infer("quantized_model", [tensor]).as_numpy("output")
        assert answer is not None
        found.append(answer.argmax(1))
    client.close()
    assert float((np.concatenate(found) == rows["labels"][:64]).mean()) > 0.95
