"""Methods on OpenVINO folders: smaller, still the same model, and what the server's engine runs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
import tiny_language_model
from transformers import AutoTokenizer

from ds_engines import manifest
from ds_engines.openvino_genai import Sampling, TextConfig, TextEngine
from ds_quantize import data, evaluate, gate
from ds_quantize.cli import main
from ds_quantize.context import Context
from ds_quantize.errors import MethodError, RecipeError
from ds_quantize.evaluate import Evaluation, Options
from ds_quantize.forms import FolderModel
from ds_quantize.limits import Gate
from ds_quantize.method import Method
from ds_quantize.methods.openvino import OpenVinoInt4Weights, OpenVinoInt8Weights, OpenVinoKvCache
from ds_quantize.openvino_methods.folder import exported
from ds_quantize.openvino_methods.stateful import Stateful
from ds_quantize.progress import Silent
from ds_quantize.recipe import load

pytestmark = pytest.mark.slow

CASES: dict[str, tuple[Method, str]] = {
    "int8": (OpenVinoInt8Weights(), "u8"),
    "int8-symmetric": (OpenVinoInt8Weights(symmetric=True), "i8"),
    "int4": (OpenVinoInt4Weights(group_size=32), "u4"),
    "int4-symmetric": (OpenVinoInt4Weights(symmetric=True, group_size=32), "i4"),
    "int4-half": (OpenVinoInt4Weights(ratio=0.5, group_size=32), "u4"),
    "int4-with-data": (OpenVinoInt4Weights(awq=True, scale_estimation=True, group_size=32), "u4"),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_language_model.made(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(source: Path, tmp_path_factory: pytest.TempPathFactory) -> FolderModel:
    return exported(FolderModel(source), tmp_path_factory.mktemp("ov"), Silent())


def texts(folder: Path, name: str = "c.txt", seed: int = 1) -> data.Data:
    path = folder / name
    path.write_text("\n".join(tiny_language_model.lines(8, seed)))
    return data.load(str(path))


def applied(model: FolderModel, method: Method, folder: Path) -> tuple[Path, dict[str, Any]]:
    """The folder written, and what was measured."""
    given = texts(folder) if method.needs_calibration else None
    (folder / "stage").mkdir()
    context = Context(folder / "stage", Silent(), model, given, threads=2)
    made = method.load()(model, method, context)
    assert isinstance(made, FolderModel)
    assert made.form == "openvino"
    return made.path, context.measured


def scores(folder: Path, ids: np.ndarray) -> np.ndarray:
    return Stateful(folder, 2).read(ids)[0]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize("case", CASES)
def test_weights_are_fewer_bits_and_answers_nearly_the_same(
    case: str, model: FolderModel, tmp_path: Path
) -> None:
    method, kind = CASES[case]
    folder, measured = applied(model, method, tmp_path)
    weights = measured["weights"]
    assert kind in weights
    assert set(weights) <= {kind, "u8"}
    four = sum(weights.get(name, 0) for name in ("u4", "i4"))
    share = four / (sum(weights.values()) - 64 * 300)  # all but the table of words
    assert share == pytest.approx({"int4-half": 0.5}.get(case, float("4" in kind)), abs=0.15)
    assert measured.get("texts", 0) == (8 if method.needs_calibration else 0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("the cat sat on a mat and saw", return_tensors="np")["input_ids"]
    assert cosine(scores(model.path, ids), scores(folder, ids)) > 0.98
    original = (model.path / "openvino_model.bin").stat().st_size
    assert (folder / "openvino_model.bin").stat().st_size < 0.6 * original
    for name in ("openvino_tokenizer.xml", "openvino_detokenizer.bin", "tokenizer.json"):
        assert (folder / name).read_bytes() == (model.path / name).read_bytes()


@pytest.mark.parametrize("cache", ["u8", "f16"])
def test_the_server_remembers_keys_and_values_as_the_folder_says(
    cache: str, model: FolderModel, tmp_path: Path
) -> None:
    folder, measured = applied(model, OpenVinoKvCache(cache=cache), tmp_path)
    assert measured["cache"] == cache
    compiled = openvino.Core().compile_model(folder / "openvino_model.xml", "CPU")
    assert compiled.get_property("KV_CACHE_PRECISION").get_type_name() == cache
    threads = 1 if cache == "f16" else 2  # one thread is a case of its own in OpenVINO
    engine = TextEngine(TextConfig(artifact=folder, threads=threads, cache_mb=1))
    try:
        prompt = AutoTokenizer.from_pretrained(folder)("the cat sat on a")["input_ids"]
        engine.add(1, prompt, Sampling(max_tokens=8, temperature=0, ignore_eos=True))
        tokens: list[int] = []
        while engine.busy:
            tokens += [token for delta in engine.step() for token in delta.tokens]
        block = 2 * 2 * 32 * (4 * 16 if cache == "f16" else 2 * 16 + 8 + 16 // 4)
        assert engine.cache_bytes == engine.blocks * block <= 1 << 20
    finally:
        engine.close()
    said = AutoTokenizer.from_pretrained(folder).decode(tokens)
    assert said.split()[:3] == ["mat", "and", "saw"]


def test_what_cannot_be_done_names_the_layer_or_the_folder(
    model: FolderModel, tmp_path: Path
) -> None:
    for name in "abc":
        (tmp_path / name).mkdir()
    with pytest.raises(MethodError, match=r"group size value 128.*\(channel size: 64\)"):
        applied(model, OpenVinoInt4Weights(group_size=128), tmp_path / "a")
    with pytest.raises(MethodError, match="'nowhere'"):
        applied(model, OpenVinoInt8Weights(ignore=("nowhere",)), tmp_path / "b")
    first, _ = applied(model, OpenVinoInt8Weights(ignore=("re:.*mlp.*",)), tmp_path / "c")
    (tmp_path / "again").mkdir()
    with pytest.raises(MethodError, match="compressed already"):
        applied(FolderModel(first, "openvino"), OpenVinoInt8Weights(), tmp_path / "again")


def test_an_int8_cache_for_vllm_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "kv.yaml"
    path.write_text("steps:\n  - method: llm-kv-cache\n    type: int8\n")
    with pytest.raises(RecipeError, match=r"vLLM loads no scales of an INT8 cache.*openvino-kv"):
        load(str(path))


def compared(
    first: FolderModel, second: FolderModel, rows: data.Data, seconds: float
) -> Evaluation:
    context = Context(second.path, Silent(), first, threads=2)
    options = Options(batches=(1, 2), seconds=seconds, repeats=2)
    return evaluate.compare(first, second, rows, "perplexity", context, options)


def test_both_engines_find_the_same_perplexity(
    source: Path, model: FolderModel, tmp_path: Path
) -> None:
    found = compared(FolderModel(source), model, texts(tmp_path, seed=3), 1)
    before, after = found.quality.baseline, found.quality.candidate
    assert before is not None
    assert after.value == pytest.approx(before.value, rel=0.02)  # OpenVINO may use bf16
    assert (found.baseline.engine, found.candidate.engine) == ("transformers", "openvino")
    assert any("one of the models was run by transformers" in note for note in found.notes)
    assert found.speedups == {}


def test_a_model_that_is_ruined_is_seen_in_its_engine(model: FolderModel, tmp_path: Path) -> None:
    graph = openvino.Core().read_model(model.path / "openvino_model.xml")
    scale = openvino.opset13.constant(np.float32(0.3))
    logits = graph.output("logits").get_node().input_value(0)
    users = logits.get_target_inputs()
    changed = openvino.opset13.multiply(logits, scale)
    for user in users:
        user.replace_source_output(changed.output(0))
    shutil.copytree(model.path, tmp_path / "ruined", ignore=shutil.ignore_patterns("*_model.*"))
    openvino.save_model(graph, tmp_path / "ruined/openvino_model.xml")
    ruined = FolderModel(tmp_path / "ruined", "openvino")
    found = compared(model, ruined, texts(tmp_path, seed=3), 0.05)
    assert not gate.judge(Gate(max_perplexity_increase=0.15), found).passed
    assert found.agreement is not None
    assert found.agreement.value == 1  # the likeliest stays the likeliest
    assert set(found.speedups) == {1, 2}


def test_a_folder_becomes_a_version_that_the_server_runs(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts(tmp_path, "e.txt", seed=2)
    words = [
        str(source), "--recipe", "llm-openvino-int8", "--evaluation", str(tmp_path / "e.txt"),
        "-o", str(tmp_path / "models/x"), "--work", str(tmp_path / "work"), "--threads", "2",
        "--seconds", "0.05", "--limit", "max_accuracy_drop=0.5", "--limit", "max_size=0.6",
    ]  # fmt: skip
    assert main(words) == 0
    version = tmp_path / "models/x/1"
    manifest.verify(version)
    said = manifest.read(version)
    assert said is not None
    assert said.gate.passed
    assert {"openvino", "nncf"} <= set(said.libraries)
    assert {"openvino_model.xml", "openvino_model.bin", "openvino_tokenizer.xml"} <= set(said.files)
    found = said.measured["evaluation"]
    assert {found[side]["engine"] for side in ("baseline", "candidate")} == {"openvino"}
    engine = TextEngine(TextConfig(artifact=version, threads=2, cache_mb=1))
    assert engine.warm_up() > 0
    engine.close()
    capsys.readouterr()
    assert main(words) == 0
    assert "to-openvino: unchanged, reused" in capsys.readouterr().out
    compare = ["compare", str(source), str(tmp_path / "models/x"), "--evaluation"]
    assert main([*compare, str(tmp_path / "e.txt")]) == 0
    assert "one of the models was run by transformers" in " ".join(capsys.readouterr().out.split())
