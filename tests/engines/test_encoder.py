"""Encoders give what Transformers and sentence-transformers give for the same folder."""

from __future__ import annotations

import json
from pathlib import Path

import encoder_folders
import numpy as np
import pytest

from ds_engines import encoder_folder
from ds_engines.encoder import EncoderEngine, padded_length
from ds_engines.encoder_tokens import EncoderTokenizer, Text
from ds_engines.encoder_weights import Weights
from ds_engines.errors import ConfigError, LoadError

CASES = encoder_folders.cases()


def answers(folder: Path, texts: list[Text]) -> np.ndarray:
    info = encoder_folder.read(folder)
    rows = EncoderTokenizer(info).encode(texts)
    return EncoderEngine(info, threads=1).run(rows)


@pytest.mark.parametrize("name", CASES)
def test_every_family_answers_as_transformers_does(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    encoder_folders.write(tmp_path, case)
    pairs: list[Text] = [(one, other) for one, other in case["pairs"]]
    info = encoder_folder.read(tmp_path)
    engine, tokenizer = EncoderEngine(info, threads=1), EncoderTokenizer(info)
    of_texts = engine.run(tokenizer.encode(case["texts"]))
    of_pairs = engine.run(tokenizer.encode(pairs))
    np.testing.assert_allclose(of_texts, case["of_texts"], atol=2e-4)
    np.testing.assert_allclose(of_pairs, case["of_pairs"], atol=2e-4)
    alone = [engine.run(tokenizer.encode([text]))[0] for text in case["texts"]]
    np.testing.assert_allclose(of_texts, alone, atol=1e-4)


@pytest.mark.parametrize("pooling", encoder_folder.POOLINGS)
def test_pooling_is_what_modules_json_says(pooling: str, tmp_path: Path) -> None:
    case = CASES["xlm-roberta"]
    encoder_folders.write(tmp_path, case)
    steps = [("Transformer", ""), ("Pooling", "1_Pooling")]
    (tmp_path / "modules.json").write_text(
        json.dumps([{"type": f"sentence_transformers.models.{k}", "path": p} for k, p in steps])
    )
    (tmp_path / "1_Pooling").mkdir()
    config = {"pooling_mode_mean_tokens": False, f"pooling_mode_{spelled(pooling)}": True}
    (tmp_path / "1_Pooling/config.json").write_text(json.dumps(config))
    info = encoder_folder.read(tmp_path)
    assert info.pooling == (pooling,)
    assert not info.normalize
    texts = ["the cat sat", "a dog"]
    states = [states_of(tmp_path, text) for text in texts]
    expected = [pooled(each, pooling) for each in states]
    np.testing.assert_allclose(answers(tmp_path, list(texts)), expected, atol=1e-4)


def spelled(pooling: str) -> str:
    return {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens"}.get(pooling, pooling)


def states_of(folder: Path, text: str) -> np.ndarray:
    """Each token's state, before anything is made of them."""
    import openvino as ov

    from ds_engines import encoder_graph

    info = encoder_folder.read(folder)
    network = encoder_graph.build(info, Weights(folder))
    model = ov.Core().compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    ids = EncoderTokenizer(info).encode([text])[0].ids
    row = np.array([ids])
    found = model([row, np.ones_like(row), np.zeros_like(row)])
    return np.array(found[0])[0]


def pooled(states: np.ndarray, pooling: str) -> np.ndarray:
    places = np.arange(1, len(states) + 1)[:, np.newaxis]
    ways = {
        "mean": states.mean(0),
        "cls": states[0],
        "max": states.max(0),
        "lasttoken": states[-1],
        "mean_sqrt_len_tokens": states.sum(0) / np.sqrt(len(states)),
        "weightedmean": (states * places).sum(0) / places.sum(),
    }
    return ways[pooling]


def test_a_dense_layer_and_halves_are_read(tmp_path: Path) -> None:
    case = CASES["mpnet"]
    encoder_folders.write(tmp_path, case)
    plain = answers(tmp_path, ["the cat"])
    steps = [("Transformer", ""), ("Dense", "2_Dense"), ("Normalize", "3_Normalize")]
    (tmp_path / "modules.json").write_text(
        json.dumps([{"type": f"sentence_transformers.models.{k}", "path": p} for k, p in steps])
    )
    (tmp_path / "2_Dense").mkdir()
    name = "torch.nn.modules.activation.Tanh"
    (tmp_path / "2_Dense/config.json").write_text(json.dumps({"activation_function": name}))
    matrix = np.linspace(-1, 1, 64, dtype=np.float16).reshape(4, 16)
    (tmp_path / "2_Dense/model.safetensors").write_bytes(
        encoder_folders.safetensors({"linear.weight": matrix}, "F16")
    )
    expected = np.tanh(plain @ matrix.astype(np.float32).T)
    np.testing.assert_allclose(answers(tmp_path, ["the cat"]), expected, atol=1e-4)


def test_halves_are_near(tmp_path: Path) -> None:
    encoder_folders.write(tmp_path, CASES["distilbert"])
    info = encoder_folder.read(tmp_path)
    rows = EncoderTokenizer(info).encode(CASES["distilbert"]["texts"])
    found = EncoderEngine(info, threads=1, half=True).run(rows)
    np.testing.assert_allclose(found, CASES["distilbert"]["of_texts"], atol=0.1)


def test_bfloat16_weights_are_read(tmp_path: Path) -> None:
    values = np.array([[1.5, -2.0], [0.0, 3.25]], dtype=np.float32)
    halves = (values.view(np.uint32) >> 16).astype(np.uint16)
    file = tmp_path / "model.safetensors"
    file.write_bytes(encoder_folders.safetensors({"w": halves}, "BF16"))
    np.testing.assert_array_equal(Weights(tmp_path)["w"], values)


@pytest.mark.parametrize("keep", [4, 40, 400])
def test_weights_cut_short_are_refused_by_their_file(keep: int, tmp_path: Path) -> None:
    encoder_folders.write(tmp_path, CASES["bert"])
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(LoadError, match=r"model\.safetensors is not a whole safetensors file"):
        EncoderEngine(encoder_folder.read(tmp_path))


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    encoder_folders.write(tmp_path, CASES["bert"], {"num_hidden_layers": 3})
    with pytest.raises(LoadError, match=r"encoder\.layer\.2\.attention"):
        EncoderEngine(encoder_folder.read(tmp_path))


def test_labels_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    encoder_folders.write(tmp_path, CASES["bert"], {"id2label": {"0": "one", "1": "two"}})
    with pytest.raises(LoadError, match=r"3 classes, and config\.json names 2 labels"):
        EncoderEngine(encoder_folder.read(tmp_path))


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"model_type": "modernbert"}, "model_type 'modernbert' is none of bert, "),
        ({"position_embedding_type": "relative_key"}, "relative_key"),
        ({"hidden_act": "mish"}, "mish"),
        ({}, ""),
    ],
)
def test_what_must_be_converted_is_told(more: dict[str, str], why: str, tmp_path: Path) -> None:
    encoder_folders.write(tmp_path, CASES["bert"], more)
    found = encoder_folder.needs_export(tmp_path)
    assert why in found
    assert bool(found) == bool(why)


def test_a_whole_network_is_used_as_it_is(tmp_path: Path) -> None:
    import openvino as ov

    from ds_engines import encoder_graph

    encoder_folders.write(tmp_path, CASES["bert"])
    info = encoder_folder.read(tmp_path)
    model = encoder_graph.build(info, Weights(tmp_path))
    ov.save_model(model, tmp_path / "openvino/openvino_model.xml", compress_to_fp16=False)
    (tmp_path / "model.safetensors").unlink()
    assert not encoder_folder.needs_export(tmp_path)
    found = answers(tmp_path, CASES["bert"]["texts"])
    np.testing.assert_allclose(found, CASES["bert"]["of_texts"], atol=2e-4)


def test_limits_of_length(tmp_path: Path) -> None:
    encoder_folders.write(tmp_path, CASES["roberta"])
    info = encoder_folder.read(tmp_path)
    assert (info.max_seq_len, info.positions) == (38, 38)
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 12}')
    assert encoder_folder.read(tmp_path).max_seq_len == 12
    assert encoder_folder.read(tmp_path, 30).max_seq_len == 30
    with pytest.raises(ConfigError, match=r"--max-seq-len 39: .* places for 38 tokens"):
        encoder_folder.read(tmp_path, 39)
    tokenizer = EncoderTokenizer(info)
    assert len(tokenizer.encode(["cat " * 50])[0].ids) == 52, "the folder's own limit is not kept"
    cut = tokenizer.encode([("cat " * 50, "dog " * 3)], most=12)[0]
    assert len(cut.ids) == 12
    assert cut.ids.count(encoder_folders.VOCABULARY["dog"]) == 3


def test_there_are_few_lengths() -> None:
    lengths = [padded_length(length, 512) for length in range(1, 513)]
    assert all(length <= padded for length, padded in enumerate(lengths, 1))
    assert len(set(lengths)) == 16
    assert padded_length(500, 502) == 502
