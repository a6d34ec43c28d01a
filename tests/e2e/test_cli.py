"""The command line when it is called wrongly: what it says, and its exit status."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
from pathlib import Path

import onnx
import pytest
from doc_blocks import troubleshooting
from onnx_models import mlp
from serving import PROGRAM, Server

USAGE, NO_MODEL = 2, 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models that can be served, and files that cannot."""
    folder = tmp_path_factory.mktemp("cli")
    good = mlp(folder / "good.onnx")
    (folder / "text.onnx").write_text("this is no model")
    (folder / "cut.onnx").write_bytes(good.read_bytes()[:-100])
    (folder / "empty.onnx").touch()
    (folder / "weights.safetensors").write_bytes(bytes(64))
    (folder / "plain").mkdir()
    _unloadable(folder / "unloadable.onnx")
    for name, config in {
        "unknown-field": "max_batch_size: 4\nmax_bach_size: 8",
        "unhonoured": 'max_batch_size: 4 ensemble_scheduling { step [ { model_name: "m" } ] }',
        "other-name": 'name: "somebody"',
        "no-syntax": "max_batch_size 4 4 {",
        "one-axis": "max_batch_size: 4 input [ { name: 'z' data_type: TYPE_FP32 dims: [ 64 ] } ]",
    }.items():
        mlp(folder / name / "model.onnx")
        (folder / name / "config.pbtxt").write_text(config)
    return folder


def _unloadable(path: Path) -> None:
    """An ONNX file by its form, with an operator that does not exist."""
    model = onnx.load(path.with_name("good.onnx"))
    model.graph.node[1].op_type = "Hyperbole"
    onnx.save(model, path)


def _run(*arguments, cwd=None, seconds=60):
    """Status and standard error of a server that is expected to end by itself."""
    command = [str(PROGRAM), *(str(argument) for argument in arguments)]
    if "--http-port" not in command:
        command += ["--http-port", "0"]
    if "--grpc-port" not in command:
        command += ["--grpc-port", "0"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=seconds, cwd=cwd, check=False
    )
    assert "Traceback" not in done.stderr
    assert "is ready" not in done.stdout
    assert any(pattern.search(done.stderr) for pattern in troubleshooting()), done.stderr
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--model takes"),
        (["--model", "no-such-model"], "'?no-such-model'?.*magika"),
        (["--model", "missing.onnx"], "no file or folder missing.onnx"),
        (["--model", "god.onnx"], "did you mean .*good.onnx"),
        (["--model", "text.onnx"], "text.onnx is a text file"),
        (["--model", "cut.onnx"], "cut.onnx is no whole ONNX file"),
        (["--model", "empty.onnx"], "empty.onnx is an empty file"),
        (["--model", "weights.safetensors"], "weights.safetensors.*safetensors"),
        (["--model", "plain"], "plain holds no model file"),
        (["--model", "bad name=good.onnx"], "'bad name'"),
        (["--model", "good.onnx", "--model", "good.onnx"], "2 models are named 'good'"),
        (["--model", "a=good.onnx", "--model", "a=./good.onnx"], "2 models are named 'a'"),
        (["--model", "good.onnx", "--device", "cuda"], "--device cuda: .*onnxruntime-gpu"),
        (["--model", "good.onnx", "--device", "tpu"], "--device tpu"),
        (["--model", "good.onnx", "--quantization", "int8"], "--quantization int8"),
        (["--model", "good.onnx", "--dtype", "fp8"], "--dtype is 'fp8'.*bf16"),
        (["--model", "good.onnx", "--max-seq-len", "512"], "--max-seq-len"),
        (["--model", "good.onnx", "--lora", "a=b"], "--lora a=b.*text model"),
        (["--model", "good.onnx", "--max-batch-size", "0"], "--max-batch-size is 0.*1 or more"),
        (["--model", "good.onnx", "--max-batch-size", "many"], "--max-batch-size.*'many'"),
        (["--model", "good.onnx", "--max-queue-size", "-1"], "--max-queue-size is -1"),
        (["--model", "good.onnx", "--gateways", "-1"], "--gateways is -1"),
        (["--model", "good.onnx", "--max-connections", "-1"], "--max-connections is -1.*0 or more"),
        (["--model", "good.onnx", "--request-timeout", "0"], "--request-timeout is 0.0"),
        (["--model", "good.onnx", "--request-timeout", "nan"], "--request-timeout is nan"),
        (["--model", "good.onnx", "--drain-timeout", "-1"], "--drain-timeout is -1"),
        (["--model", "good.onnx", "--drain-timeout", "nan"], "--drain-timeout is nan"),
        (["--model", "good.onnx", "--hang-timeout", "0"], "--hang-timeout is 0"),
        (["--model", "good.onnx", "--max-bytes-in-flight", "1"], "--max-bytes-in-flight 1 "),
        (["--model", "good.onnx", "--http-port", "65536"], "--http-port is 65536.*65535"),
        (["--model", "good.onnx", "--http-port", "77", "--grpc-port", "77"], "both 77"),
        (
            ["--model", "good.onnx", "--grpc-infer-response-compression-level", "low"],
            "needs --grpc",
        ),
        (["--model", "good.onnx", "--http-port", "78", "--metrics-port", "78"], "both 78"),
        (["--model", "good.onnx", "--log-level", "loud"], "--log-level is 'loud'.*debug"),
        (["--model", "good.onnx", "--log-format", "xml"], "--log-format is 'xml'.*json"),
        (["--model", "good.onnx", "--host", "203.0.113.1"], "203.0.113.1.*--host"),
        (["--model", "good.onnx", "--host", "no.such.host.invalid"], "no.such.host.invalid"),
        (["--model", "good.onnx", "--colour", "red"], "--colour"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_call_names_what_is_wrong(folder, arguments, says):
    status, error = _run(*arguments, cwd=folder)
    assert re.search(says, error), error
    assert status == USAGE


def test_a_folder_whose_sockets_would_have_too_long_a_path_is_named(folder, tmp_path, monkeypatch):
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    status, error = _run("--model", folder / "good.onnx")
    assert f"{long}, has too long a path" in error
    assert "TMPDIR" in error
    assert status == USAGE


@pytest.mark.parametrize("flag", ["--http-port", "--grpc-port"])
def test_port_in_use_is_named_before_anything_is_loaded(folder, flag):
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        status, error = _run("--model", folder / "good.onnx", flag, port)
    assert f"port {port} on 127.0.0.1 is in use" in error
    assert flag in error
    assert "loaded" not in error
    assert status == USAGE


@pytest.mark.slow
def test_port_of_another_server_is_in_use(folder):
    """Servers share a port among their own gateways, never with each other."""
    with Server("--model", folder / "good.onnx", "--gateways", "2") as server:
        for flag, address in (("--http-port", server.http), ("--grpc-port", server.grpc)):
            port = address.rpartition(":")[2]
            status, error = _run("--model", folder / "good.onnx", flag, port)
            assert f"port {port} on 127.0.0.1 is in use" in error
            assert status == USAGE
        assert server.ready()


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("unloadable.onnx", "unloadable.onnx.*Hyperbole"),
        ("unknown-field", "unknown-field/config.pbtxt.*max_bach_size"),
        *(
            pytest.param(name, says, marks=pytest.mark.slow)
            for name, says in {
                "unhonoured": "unhonoured/config.pbtxt.*ensemble_scheduling",
                "other-name": "other-name/config.pbtxt.*somebody",
                "no-syntax": "no-syntax/config.pbtxt",
                "one-axis": "one-axis/config.pbtxt.*z",
            }.items()
        ),
    ],
)
def test_model_that_cannot_be_loaded_ends_the_server(folder, model, says):
    status, error = _run("--model", folder / model)
    assert re.search(says, error), error
    assert "no model is left" in error
    assert "starting it again" not in error, "it would fail in the same way again"
    assert status == NO_MODEL


def test_model_that_cannot_be_loaded_beside_one_that_can(folder):
    with Server("--model", folder / "good.onnx", "--model", folder / "unknown-field") as server:
        assert "max_bach_size" in server.output()
        assert server.get("/v2/models/good/ready").status_code == 200
        assert server.get("/v2/models/unknown-field/ready").status_code == 503
        assert not server.ready()
        refused = server.client.post(f"{server.http}/v2/models/unknown-field/infer", json={})
        assert refused.status_code == 503
        assert "failed" in refused.json()["error"]
        assert "max_bach_size" in refused.json()["error"]
        assert "retry-after" not in refused.headers, "waiting does not help"


@pytest.mark.slow
def test_exit_on_model_failure(folder):
    models = ["--model", folder / "good.onnx", "--model", folder / "unknown-field"]
    status, error = _run(*models, "--exit-on-model-failure")
    assert "unknown-field has failed (--exit-on-model-failure)" in error
    assert status == NO_MODEL


def test_version_and_help_and_catalogue():
    for flag, says in (("--version", "ds-serve "), ("--list-models", "magika")):
        done = subprocess.run([PROGRAM, flag], capture_output=True, text=True, check=True)
        assert says in done.stdout
    shown = subprocess.run([PROGRAM, "--help"], capture_output=True, text=True, check=True).stdout
    for flag in ("--model", "--max-batch-size", "--drain-timeout", "--exit-on-model-failure"):
        assert flag in shown
