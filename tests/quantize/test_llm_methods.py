"""Methods on language models: what they write is what vLLM is told, and still the same model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_language_model
from safetensors import safe_open

from ds_quantize import data
from ds_quantize.context import Context
from ds_quantize.errors import DataError, MethodError
from ds_quantize.forms import FolderModel
from ds_quantize.method import Method
from ds_quantize.methods.llm import LlmFp8, LlmInt4, LlmInt8Weights, LlmKvCache, LlmW8a8
from ds_quantize.progress import Silent

INT8 = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}
FP8 = {"num_bits": 8, "type": "float", "symmetric": True}
INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True}
TOKEN = {"num_bits": 8, "strategy": "token", "dynamic": True}
LAYER = "model.layers.1.mlp.up_proj"

CASES: dict[str, tuple[Method, str, dict[str, Any], dict[str, Any] | None]] = {
    "w8a8": (LlmW8a8(), "int-quantized", INT8, TOKEN | {"type": "int"}),
    "w8a8-rtn": (LlmW8a8(smoothing=0, algorithm="rtn"), "int-quantized", INT8, TOKEN),
    "int8": (LlmInt8Weights(), "pack-quantized", INT8, None),
    "int8-gptq": (LlmInt8Weights(algorithm="gptq"), "pack-quantized", INT8, None),
    "int4-rtn": (LlmInt4(algorithm="rtn", group_size=32), "pack-quantized", INT4, None),
    "int4-gptq": (LlmInt4(algorithm="gptq", group_size=32), "pack-quantized", INT4, None),
    "int4-awq": (LlmInt4(algorithm="awq", group_size=32), "pack-quantized", INT4, None),
    "fp8": (LlmFp8(), "float-quantized", FP8, TOKEN | {"type": "float"}),
    "fp8-static": (
        LlmFp8(activations="static"),
        "float-quantized",
        FP8 | {"strategy": "tensor"},
        {"type": "float", "strategy": "tensor", "dynamic": False},
    ),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> FolderModel:
    return FolderModel(tiny_language_model.made(tmp_path_factory.mktemp("tiny")))


def texts(folder: Path) -> data.Data:
    path = folder / "calibration.txt"
    path.write_text("\n".join(tiny_language_model.lines(8, seed=1)))
    return data.load(str(path))


def applied(
    model: FolderModel, method: Method, folder: Path, with_data: bool | None = None
) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """The folder written, its quantization_config, and what was measured."""
    own = folder / "stage"
    own.mkdir()
    given = method.needs_calibration if with_data is None else with_data
    context = Context(own, Silent(), model, texts(folder) if given else None, threads=2)
    made = method.load()(model, method, context)
    assert isinstance(made, FolderModel)
    config = json.loads((made.path / "config.json").read_text())
    return made.path, config["quantization_config"], context.measured


def tensors(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_folder_says_how_it_is_quantized(case: str, model: FolderModel, tmp_path: Path) -> None:
    method, format_, weights, activations = CASES[case]
    folder, config, measured = applied(model, method, tmp_path)
    assert config["quant_method"] == "compressed-tensors"
    assert config["format"] == measured["format"] == format_
    assert config["ignore"] == ["lm_head"]
    (group,) = config["config_groups"].values()
    assert weights.items() <= group["weights"].items()
    if activations is None:
        assert group["input_activations"] is None
    else:
        assert activations.items() <= group["input_activations"].items()
    assert f"{LAYER}.weight_scale" in tensors(folder)
    assert (f"{LAYER}.input_scale" in tensors(folder)) == (case == "fp8-static")
    assert measured.get("texts", 0) == (8 if method.needs_calibration else 0)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (folder / name).read_bytes() == (model.path / name).read_bytes()
    assert not (folder / "recipe.yaml").exists()


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["none", "fp8"])
def test_the_cache_of_keys_and_values_has_its_scales(
    weights: str, model: FolderModel, tmp_path: Path
) -> None:
    method = LlmKvCache(weights=weights)
    folder, config, _ = applied(model, method, tmp_path)
    scheme = config["kv_cache_scheme"]
    wanted = {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True}
    assert wanted.items() <= scheme.items()
    assert not scheme["dynamic"]
    assert len(config["config_groups"]) == (0 if weights == "none" else 1)
    scales = {name for name in tensors(folder) if name.endswith(("k_scale", "v_scale"))}
    assert len(scales) == 4


@pytest.mark.slow
def test_layers_can_be_left_as_they_are(model: FolderModel, tmp_path: Path) -> None:
    method = LlmInt8Weights(ignore=("lm_head", r"re:.*mlp.*"))
    folder, config, _ = applied(model, method, tmp_path)
    assert LAYER in config["ignore"]
    assert f"{LAYER}.weight" in tensors(folder)
    assert "model.layers.1.self_attn.q_proj.weight" not in tensors(folder)


def test_groups_that_do_not_divide_a_layer_are_told_with_its_name(tmp_path: Path) -> None:
    odd = FolderModel(tiny_language_model.made(tmp_path / "odd", hidden=80))
    with pytest.raises(MethodError, match=r"'model\.layers\.0\..*' has 80 inputs, .* of 64"):
        applied(odd, LlmInt4(algorithm="rtn"), tmp_path)


def test_a_model_that_is_quantized_already_is_refused(model: FolderModel, tmp_path: Path) -> None:
    first, _, _ = applied(model, LlmInt8Weights(), tmp_path)
    (tmp_path / "again").mkdir()
    with pytest.raises(MethodError, match=r"quantized already \(compressed-tensors\)"):
        applied(FolderModel(first), LlmInt8Weights(), tmp_path / "again")


def test_data_without_texts_are_refused(model: FolderModel, tmp_path: Path) -> None:
    path = tmp_path / "numbers.jsonl"
    path.write_text('{"image": [1, 2]}\n')
    method = LlmFp8(activations="static")
    context = Context(tmp_path / "stage", Silent(), model, data.load(str(path)))
    with pytest.raises(DataError, match=r"row 0 has image; a language model takes one 'text'"):
        method.load()(model, method, context)
