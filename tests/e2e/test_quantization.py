"""`ds-serve --quantization`: quantized and judged when the server starts, and kept."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http
from onnx_models import mlp
from quantizing import RECIPE, Workshop, workshop
from serving import PROGRAM, READY, Server, children, gone, until

USAGE, NO_MODEL = 2, 1
HOPELESS = "gate: {max_size: 0.01}\n"


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    monkeypatch.setenv("DS_SERVE_CACHE", str(tmp_path / "cache"))
    return workshop(tmp_path)


def flags(shop: Workshop, recipe: str = "int8.yaml", *more: str | Path) -> list[str | Path]:
    return [
        *("--model", shop.folder / "net.onnx", "--quantization", shop.folder / recipe),
        *("--calibration", shop.folder / "cal.npz", *more),
    ]


def right(address: str, shop: Workshop) -> float:
    """The share of rows that are answered as the original does."""
    data = np.load(shop.folder / "eval.npz")
    given = tritonclient.http.InferInput("x", [64, 64], "FP32")
    given.set_data_from_numpy(data["x"][:64])
    with tritonclient.http.InferenceServerClient(address) as client:
        found = client.infer("net", [given]).as_numpy("y")
    assert found is not None
    return float((found.argmax(1) == data["labels"][:64]).mean())


def ended(*words: str | Path, status: int) -> str:
    """What a server says that ends by itself."""
    command = [PROGRAM, "--http-port=0", "--grpc-port=0", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert "is ready" not in done.stdout
    return done.stderr


@pytest.mark.slow
def test_the_first_start_quantizes_and_the_second_reuses_it(shop: Workshop) -> None:
    evaluation = ("--evaluation", shop.folder / "eval.npz")
    with Server(*flags(shop, "int8.yaml", *evaluation)) as server:
        assert "int8-static: done in" in server.log(), "progress is shown"
        assert "passed its gate" in server.log()
        assert right(server.http_address, shop) > 0.9
        version = Path(re.findall(r"is (\S+/net/1)$", server.log(), re.MULTILINE)[-1])
    assert (shop.folder / "cache") in version.parents
    sizes = [path.stat().st_size for path in (version / "model.onnx", shop.folder / "net.onnx")]
    assert sizes[0] < sizes[1] / 2
    with Server(*flags(shop, "int8.yaml", *evaluation)) as server:
        assert "int8-static" not in server.log()
        assert str(version) in server.log()
        assert right(server.http_address, shop) > 0.9
    # What has changed since is neither served nor kept.
    (version / "model.onnx").write_bytes((shop.folder / "net.onnx").read_bytes())
    with Server(*flags(shop, "int8.yaml", *evaluation)) as server:
        assert "int8-static: unchanged, reused" in server.log()
        assert (version / "model.onnx").stat().st_size == sizes[0]


@pytest.mark.slow
def test_a_model_that_fails_its_gate_is_not_served_and_others_are(shop: Workshop) -> None:
    shop.recipe(RECIPE.replace("gate:", "gate:\n  max_size: 0.01"), "hopeless")
    other = mlp(shop.folder / "other.onnx", 1)
    said = ended(*flags(shop, "hopeless.yaml"), status=NO_MODEL)
    assert "net is not served: net.onnx quantized by the recipe" in said.replace("version 1 ", "")
    report = Path(re.findall(r"The report is (\S+report\.html)", said)[-1])
    assert report.is_file()
    again = ended(*flags(shop, "hopeless.yaml"), status=NO_MODEL)
    assert "int8-static" not in again, "it is not made once more"
    assert str(report) in again
    with Server(*flags(shop, "hopeless.yaml", "--allow-unverified")) as server:
        assert right(server.http_address, shop) > 0.9
        assert "--allow-unverified, though" in server.log()
    recipe = shop.recipe("extends: ./int8.yaml\ngate: {max_accuracy_drop: 1}", "all")
    assert recipe == "./all.yaml"
    # The labels are those of `net`: `other` answers otherwise, and is as good as it was.
    with Server(*flags(shop, "all.yaml", "--model", other)) as server:
        assert server.ready()
        assert set(server.workers()) == {"net", "other"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--quantization", "int9", "--calibration", "cal.npz"], "no recipe is called 'int9'; did"),
        (["--quantization", "no.yaml", "--calibration", "cal.npz"], "no.yaml cannot be read"),
        (["--quantization", "int8"], "--quantization int8 needs data .* give --calibration DATA"),
        (["--quantization", "int8", "--calibration", "no.npz"], "--quantization int8: .*no.npz"),
        (["--quantization", "int8", "--evaluation", "eval.npz"], "needs calibration data"),
        (["--calibration", "cal.npz"], "--calibration cal.npz is data for --quantization"),
        (["--evaluation", "cal.npz"], "--evaluation cal.npz is data for --quantization"),
        (
            ["--quantization", "int8", "--calibration", "cal.npz", "--model-repository", "."],
            "is for files of --model; for a model of a repository use: ds-quantize FILE",
        ),
        (
            ["--quantization", "int8", "--calibration", "cal.npz", "--model", "set.onnx"],
            r"'set' is configured by \S+/config.pbtxt; add a version to it: ds-quantize",
        ),
        (
            ["--quantization", "int8", "--calibration", "cal.npz", "--model", "t.gguf"],
            "t.gguf is a GGUF file, whose weights keep the bits that they have",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_quantized_is_named(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch, words: list[str], says: str
) -> None:
    monkeypatch.chdir(shop.folder)
    (shop.folder / "t.gguf").write_bytes(b"GGUF")
    if "set.onnx" in words:
        mlp(shop.folder / "set/model.onnx")
        (shop.folder / "set/config.pbtxt").write_text("max_batch_size: 8")
        words = [word.replace("set.onnx", "set") for word in words]
    assert re.search(says, ended("--model", "net.onnx", *words, status=USAGE))


def test_libraries_that_are_missing_are_named(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shop.folder / "missing").mkdir()
    (shop.folder / "missing/yaml.py").write_text("raise ModuleNotFoundError('no', name='yaml')")
    monkeypatch.setenv("PYTHONPATH", str(shop.folder / "missing"))
    said = ended(*flags(shop), status=USAGE)
    assert 'pip install "ds-serve[quantize]"' in said


@pytest.mark.slow
def test_killing_the_server_ends_the_quantization(shop: Workshop) -> None:
    server = Server(*flags(shop)).start()
    try:
        until(lambda: "read ..." in server.log(), "it has not begun", details=server.log)
        (child,) = children(server.process.pid)
        server.kill()
        until(lambda: gone(child), "ds-quantize goes on")
    finally:
        server.close()


THREE_LINES = """
from ds_serve import InferenceServer

if __name__ == "__main__":
    InferenceServer({arguments}).run(port=0, grpc_port=0)
"""


def serving(folder: Path, arguments: str) -> subprocess.Popen[bytes]:
    (folder / "serve.py").write_text(THREE_LINES.format(arguments=arguments))
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "serve.py"], cwd=folder, stdout=log, stderr=subprocess.STDOUT
        )


def asked(process: subprocess.Popen[bytes], shop: Workshop, name: str = "net") -> float:
    """The share of right answers, after which the server is ended."""
    log = shop.folder / "log"
    try:
        until(
            lambda: READY.search(log.read_text()) is not None or process.poll() is not None,
            "it is not ready", 200, log.read_text,
        )  # fmt: skip
        found = READY.search(log.read_text())
        assert found is not None, log.read_text()
        return right(found[1].removeprefix("http://"), shop)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, log.read_text()


@pytest.mark.slow
def test_from_python(shop: Workshop) -> None:
    arguments = (
        '"net.onnx", device="cpu", batch_size=64, quantization="./int8.yaml", '
        'calibration="cal.npz", evaluation="eval.npz"'
    )
    assert asked(serving(shop.folder, arguments), shop) > 0.9
    assert "quantized by the recipe ./int8.yaml" in (shop.folder / "log").read_text()


def test_an_onnx_model_under_the_name_of_another_kind(shop: Workshop) -> None:
    """As `quantized_model.pt`, which `ds_quantize` writes beside a `model.pt` of its export."""
    (shop.folder / "net.onnx").rename(shop.folder / "net.pt")
    arguments = 'model_path="net.pt", device="cpu", batch_size=64'
    assert asked(serving(shop.folder, arguments), shop) == 1.0
