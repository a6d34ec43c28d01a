"""Which text models are served: flags, names, files that are good and files that are not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import onnx_models
import openai
import pytest
from serving import PROGRAM, Server
from texts import FRANCE, TEXT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

PORTS = ["--http-port", "0", "--grpc-port", "0"]


def ends(*arguments: str | Path) -> tuple[int, str]:
    """The exit status of a server that does not start, and what it wrote to stderr."""
    done = subprocess.run(
        [PROGRAM, *PORTS, *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert "Traceback" not in done.stderr
    assert "ds-serve is ready" not in done.stdout
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def cut(gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first half of a GGUF file."""
    path = tmp_path_factory.mktemp("cut") / "cut.gguf"
    with gguf.open("rb") as whole:
        path.write_bytes(whole.read(gguf.stat().st_size // 2))
    return path


@pytest.fixture(scope="module")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return onnx_models.mlp(tmp_path_factory.mktemp("mlp") / "mlp.onnx")


@pytest.fixture(scope="module")
def mixed(gguf: Path, cut: Path, mlp: Path) -> Iterator[Server]:
    """A small context, models named and by path, and one that cannot be loaded."""
    models = [f"small={gguf}", str(mlp), f"bad={cut}"]
    flags = [word for model in models for word in ("--model", model)]
    with Server(*flags, "--max-seq-len", "256") as running:
        yield running
        assert running.stop() == 0
        assert "Traceback" not in running.log(), running.log()


@pytest.fixture
def client(mixed: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{mixed.http}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_a_gguf_by_path_has_the_name_it_was_given(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["small"]
    answer = client.chat.completions.create(
        model="small", messages=FRANCE, temperature=0, max_tokens=20
    )
    assert answer.model == "small"
    assert "Paris" in (answer.choices[0].message.content or "")
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model=TEXT, messages=FRANCE)


def test_the_context_is_as_long_as_it_was_set(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="the context is 256 tokens") as caught:
        client.completions.create(model="small", prompt="one two " * 200)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="the context is 256 tokens"):
        client.completions.create(model="small", prompt="one", max_tokens=256)
    answer = client.completions.create(
        model="small", prompt="one two " * 100, temperature=0, max_tokens=4
    )
    assert answer.usage is not None
    assert 100 < answer.usage.prompt_tokens < 252


def test_a_text_fills_the_context_and_ends(client: openai.OpenAI) -> None:
    """Without max_tokens a chat may take all that the context leaves."""
    answer = client.chat.completions.create(
        model="small", messages=FRANCE, extra_body={"ignore_eos": True}
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 256


def test_a_model_that_cannot_be_loaded_is_said_to_be_so(
    mixed: Server, client: openai.OpenAI, cut: Path
) -> None:
    assert mixed.get("/v2/models/bad/ready").status_code == 503
    assert mixed.get("/v2/models/small/ready").status_code == 200
    ready = mixed.get("/health/ready")
    assert ready.status_code == 503
    assert ready.json()["models"].keys() == {"bad"}
    reason = ready.json()["models"]["bad"]
    assert reason.startswith("failed: ")
    assert str(cut) in reason
    assert "is a damaged GGUF file" in reason
    with pytest.raises(openai.InternalServerError, match="model 'bad' is failed") as caught:
        client.chat.completions.create(model="bad", messages=FRANCE)
    assert caught.value.status_code == 503
    assert "retry-after" not in caught.value.response.headers
    assert reason in mixed.output().replace("\n", " ")


def test_the_tensor_model_beside_it_is_served(mixed: Server) -> None:
    row = {"name": "x", "datatype": "FP32", "shape": [1, 64], "data": [0.5] * 64}
    answer = mixed.client.post(f"{mixed.http}/v2/models/mlp/infer", json={"inputs": [row]})
    assert answer.status_code == 200
    assert len(answer.json()["outputs"][0]["data"]) == 8


def test_a_damaged_model_alone_ends_the_server(cut: Path) -> None:
    status, said = ends("--model", cut)
    assert status == 1
    assert str(cut) in said
    assert "is a damaged GGUF file" in said
    assert "no model is left" in said


def test_a_damaged_model_ends_a_server_that_wants_all(cut: Path, mlp: Path) -> None:
    status, said = ends("--model", cut, "--model", mlp, "--exit-on-model-failure")
    assert status == 1
    assert str(cut) in said


def test_a_context_length_needs_a_text_model(mlp: Path) -> None:
    status, said = ends("--model", mlp, "--max-seq-len", "256")
    assert status == 2
    assert "--max-seq-len" in said
    assert said.count("\n") == 1


def test_the_serving_modules_load_no_training_framework(tmp_path: Path) -> None:
    """Packages of those names lie on the path, so that an import of one would succeed."""
    heavy = ["torch", "transformers", "tensorflow", "vllm"]
    # A process of its own imports these, and only for what is PyTorch's or Ray's, or for a GPU.
    torch = r"torch(_code|_device|_lanes|_layers|_numerics|_program)?|(encoder|openvino)_tracing"
    cuda = r"tensorrt(_slot|_profile|_numerics)?|cuda(\..*)?"
    apart = rf"ds_engines\.({torch}|{cuda})|ds_serve\.cluster\.deploy"
    for name in heavy:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("__version__ = '0'\n")
    code = (
        "import importlib, pkgutil, re, sys\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "import ds_serve, ds_engines, openvino_genai, onnxruntime\n"
        "for package in (ds_serve, ds_engines):\n"
        "    for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        f"        if not re.fullmatch({apart!r} + r'|.*\\.__main__', module.name):\n"
        "            importlib.import_module(module.name)\n"
        f"print(sorted(sys.modules.keys() & {set(heavy)!r}), len(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found, _, loaded = done.stdout.strip().rpartition(" ")
    assert found == "[]"
    assert int(loaded) > 300
