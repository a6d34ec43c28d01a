"""A model that quantization ruins is stopped by its gate, and never answers anybody."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import tritonclient.http
from onnx import helper
from onnx_models import FLOAT, _constant, _value, save
from quantizing import Workshop, workshop
from serving import Server, until

from ds_engines import manifest

RUINOUS = """
summary: one scale for all values of a tensor, as wide as the widest of them
steps:
  - method: int8-static
    calibration: min-max
    per_channel: false
metric: top-1
gate:
  max_accuracy_drop: 0.02
"""
GENTLE = """
summary: weights and activations that keep their range
steps: [fp16]
metric: top-1
gate:
  max_accuracy_drop: 0.02
"""
LOUD = 60.0
"""Times as large as the other activations is one that says next to nothing."""


def outliers(path: Path) -> Path:
    """x FP32[batch, 64] to y FP32[batch, 8]; one activation drowns all others."""
    random = np.random.default_rng(3)
    scales = np.ones(64, np.float32)
    scales[0] = LOUD
    weights = random.standard_normal((64, 8)).astype(np.float32) / 8
    weights[0] /= LOUD * 10
    return save(
        path,
        [
            helper.make_node("Mul", ["x", "scales"], ["h"]),
            helper.make_node("MatMul", ["h", "weights"], ["y"]),
        ],
        [_value("x", FLOAT, ["batch", 64])],
        [_value("y", FLOAT, ["batch", 8])],
        [_constant("scales", scales), _constant("weights", weights)],
    )


def ruinable(folder: Path) -> Workshop:
    """A workshop about that model."""
    shop = workshop(folder)
    session = ort.InferenceSession(outliers(folder / "net.onnx"))
    for name in ("cal", "eval"):
        x = np.load(folder / f"{name}.npz")["x"]
        np.savez(folder / f"{name}.npz", x=x, labels=session.run(None, {"x": x})[0].argmax(1))
    return shop


@dataclass
class Load:
    """Asks again and again, from a thread, and looks at each answer."""

    server: Server
    shop: Workshop
    versions: set[str] = field(default_factory=set)
    answers: int = 0
    wrong: float = 0.0
    errors: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Load:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        data = np.load(self.shop.folder / "eval.npz")
        given = tritonclient.http.InferInput("x", [32, 64], "FP32")
        given.set_data_from_numpy(data["x"][:32])
        with tritonclient.http.InferenceServerClient(self.server.http_address) as client:
            while not self._stop.wait(0.01):
                try:
                    found = client.infer("net", [given])
                except Exception as error:
                    self.errors.append(str(error))
                    return
                self.answers += 1
                self.versions.add(found.get_response()["model_version"])
                labels = found.as_numpy("y").argmax(1)
                self.wrong = max(self.wrong, float((labels != data["labels"][:32]).mean()))


def reasons(shop: Workshop, version: int) -> list[str]:
    found = manifest.read(shop.models / "net" / str(version))
    assert found is not None
    return found.gate.reasons


@pytest.mark.slow
def test_it_is_never_served(tmp_path: Path) -> None:
    shop = ruinable(tmp_path)
    gentle, ruinous = shop.recipe(GENTLE, "gentle"), shop.recipe(RUINOUS, "ruinous")
    first = shop.run(recipe=gentle)
    assert first.returncode == 0, first.stdout + first.stderr
    flags = ["--model-control-mode=poll", "--repository-poll-secs=1"]
    with Server("--model-repository", shop.models, *flags) as server, Load(server, shop) as load:
        stopped = shop.run(recipe=ruinous)
        assert stopped.returncode == 1, stopped.stdout + stopped.stderr
        assert "not passed: " in stopped.stdout
        assert "max_accuracy_drop wants at most 0.020" in stopped.stdout
        assert [path.name for path in shop.models.glob("net/[0-9]*")] == ["1"]
        # Also where somebody wants to have it in the repository.
        assert shop.run("--keep-failed", recipe=ruinous).returncode == 1
        (why, *_) = reasons(shop, 2)
        until(lambda: why in server.log(), "version 2 is not noticed", details=server.log)
        index = server.client.post(f"{server.http}/v2/repository/index", json={}).json()
        states = {entry["version"]: entry for entry in index}
        assert states["1"]["state"] == "READY"
        assert states["2"]["state"] == "UNAVAILABLE"
        assert why in states["2"]["reason"]
        assert server.ready()
        before = load.answers
        until(lambda: load.answers > before + 20, "the load has ended", details=server.log)
        # It takes a good one to replace the first.
        assert shop.run(recipe=gentle).returncode == 0
        until(lambda: "3" in load.versions, "version 3 is not served", details=server.log)
    assert load.errors == []
    assert load.versions == {"1", "3"}
    assert load.wrong <= 0.05
