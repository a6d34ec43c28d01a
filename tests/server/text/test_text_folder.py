"""A Hugging Face folder converted and served by the CPU worker, with adapters: needs PyTorch."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from text_worker import MODEL, TextWorker

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

from ds_engines.errors import ConfigError  # noqa: E402
from ds_engines.openvino_lora import scale  # noqa: E402
from ds_serve.text.convert import openvino_folder, weights_of  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # PyTorch alone takes a minute to import

LAYER = "model.layers.1.mlp.down_proj"
PROMPT = "the cat sat on a mat and saw that dog"


class Notes:
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tiny_language_model

    return tiny_language_model.made(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture(scope="module")
def converted(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    before = os.environ.get("DS_SERVE_CACHE")
    os.environ["DS_SERVE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    notes = Notes()
    made = openvino_folder(tiny, notes, "int8")
    assert any("100%" in said for said in notes.said)
    assert weights_of(made) == "int8"
    again = Notes()
    assert openvino_folder(tiny, again, "int8") == made
    assert again.said == []
    yield made
    os.environ.pop("DS_SERVE_CACHE")
    if before is not None:
        os.environ["DS_SERVE_CACHE"] = before


def adapter(folder: Path, seed: int) -> Path:
    """As PEFT writes it; alpha / r is 2."""
    torch.manual_seed(seed)
    folder.mkdir()
    matrices = {"lora_A": torch.randn(4, 128) / 11, "lora_B": 3 * torch.randn(64, 4)}
    prefix = f"base_model.model.{LAYER}"
    save_file(
        {f"{prefix}.{name}.weight": matrix for name, matrix in matrices.items()},
        folder / "adapter_model.safetensors",
    )
    (folder / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8}))
    return folder


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("adapters")
    return {name: adapter(home / name, seed) for seed, name in enumerate(("one", "two"))}


@pytest.fixture(scope="module")
def folder_worker(
    converted: Path, adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TextWorker]:
    flags = [word for name, path in adapters.items() for word in ("--lora", f"{name}={path}")]
    worker = TextWorker(tmp_path_factory.mktemp("w"), converted, "--cache-size-mb", "16", *flags)
    try:
        worker.wait_ready()
        yield worker
    finally:
        worker.close()


def said(worker: TextWorker, model: str) -> str:
    body = {"model": model, "prompt": PROMPT, "temperature": 0, "max_tokens": 12}
    answer = worker.http.post("/v1/completions", json=body | {"ignore_eos": True})
    assert answer.status_code == 200, answer.text
    found: str = answer.json()["choices"][0]["text"]
    return found


def merged(folder: Path, found: Path) -> Any:
    """PyTorch's model with the adapter's product added to the layer's weights."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    weights = load_file(found / "adapter_model.safetensors")
    a, b = (weights[f"base_model.model.{LAYER}.lora_{m}.weight"] for m in "AB")
    with torch.no_grad():
        model.get_submodule(LAYER).weight += scale(found / "adapter_model.safetensors") * b @ a
    return model


def test_the_folder_is_served(folder_worker: TextWorker, tiny: Path) -> None:
    """It knows its text by heart."""
    assert said(folder_worker, MODEL).startswith(" run to sea the cat")
    chat = {"model": MODEL, "messages": [{"role": "user", "content": "the cat"}], "max_tokens": 3}
    answer = folder_worker.http.post("/v1/chat/completions", json=chat | {"temperature": 0})
    assert answer.status_code == 200
    models = folder_worker.http.get("/v1/models").json()["data"]
    assert [model["id"] for model in models] == [MODEL, "one", "two"]
    assert models[0]["max_model_len"] == 256
    long = folder_worker.http.post("/v1/completions", json={"model": MODEL, "prompt": PROMPT * 50})
    assert long.status_code == 400
    assert "256 tokens" in long.text


def test_each_adapter_answers_as_its_merged_weights(
    folder_worker: TextWorker, tiny: Path, adapters: dict[str, Path]
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny)
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    base = said(folder_worker, MODEL)
    for name, path in adapters.items():
        found = said(folder_worker, name)
        assert found != base
        with torch.no_grad():
            logits = merged(tiny, path)(ids).logits[0, -1]
        first = [tokenizer.decode(each) for each in logits.topk(2).indices]
        assert found.startswith(tuple(first))
    assert said(folder_worker, MODEL) == base


def test_requests_of_several_adapters_at_once(folder_worker: TextWorker) -> None:
    names = [MODEL, "one", "two"] * 4
    alone = {name: said(folder_worker, name) for name in set(names)}
    found: list[tuple[str, str]] = []
    threads = [
        threading.Thread(target=lambda n=name: found.append((n, said(folder_worker, n))))
        for name in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted((name, alone[name]) for name in names)


def test_an_adapter_for_other_layers_is_refused(
    converted: Path, tmp_path: Path, tiny: Path
) -> None:
    wrong = tmp_path / "wrong.safetensors"
    save_file({"base_model.model.model.layers.7.mlp.x.lora_A.weight": torch.ones(2, 2)}, wrong)
    worker = TextWorker(tmp_path, converted, "--lora", f"a={wrong}")
    assert worker.process.wait(60) == 3
    assert "adapts model.layers.7.mlp.x, a layer that" in worker.failure_file.read_text()
    worker.close()


def test_what_cannot_be_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_SERVE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text('{"model_type": "nothing"}')
    with pytest.raises(ConfigError):
        openvino_folder(tmp_path / "odd", Notes())
    assert not [
        path
        for path in (tmp_path / "cache" / "openvino").iterdir()
        if path.is_dir() and path.name != ".hashes"
    ]
