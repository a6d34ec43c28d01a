"""A Hugging Face folder as OpenVINO's: the same model, in the engine that serves it."""

from __future__ import annotations

import json
from pathlib import Path

import openvino_genai
import pytest
import tiny_language_model
import torch
from openvino_genai import ContinuousBatchingPipeline, GenerationConfig, SchedulerConfig, Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, MistralConfig, MistralForCausalLM

from ds_engines.errors import LoadError
from ds_engines.openvino_export import export_folder, is_exported


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_language_model.made(tmp_path_factory.mktemp("tiny"))


def ignored(step: str, done: float) -> None: ...


def in_sixteen_bits(source: Path, folder: Path) -> Path:
    AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_it_writes_what_the_model_would_write(source: Path, tmp_path: Path) -> None:
    target, told = tmp_path / "deep/ov", []
    export_folder(source, target, lambda step, done: told.append((step, done)))
    assert told[0] == ("reading", 0.0)
    assert told[-1] == ("done", 1.0)
    assert [done for _, done in told] == sorted(done for _, done in told)
    assert is_exported(target)
    assert not is_exported(source)
    for name in ("config.json", "tokenizer.json", "chat_template.jinja"):
        assert (target / name).read_bytes() == (source / name).read_bytes()
    assert not (target / "model.safetensors").exists()
    text = "the cat sat"
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForCausalLM.from_pretrained(source)
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    assert Tokenizer(str(target)).encode(text).input_ids.data.tolist() == ids.tolist()
    scheduler = SchedulerConfig()
    scheduler.num_kv_blocks = 32
    config = GenerationConfig(max_new_tokens=20, do_sample=False, ignore_eos=True)
    config.apply_chat_template = False
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    served = ContinuousBatchingPipeline(str(target), scheduler, "CPU", exact)
    # Two at once, so that the batch's rows do not mix.
    answers = served.generate([text, "mat and"], [config, config])
    expected = model.generate(
        ids, max_new_tokens=20, min_new_tokens=20, do_sample=False, pad_token_id=0
    )
    assert answers[0].m_generation_ids == [tokenizer.decode(expected[0, ids.shape[1] :])]


@pytest.mark.slow
def test_sixteen_bits_stay_sixteen(source: Path, tmp_path: Path) -> None:
    """Words and scores share one table here, which is written once."""
    half = in_sixteen_bits(source, tmp_path / "half")
    export_folder(half, tmp_path / "ov", ignored)
    weights = (half / "model.safetensors").stat().st_size
    assert (tmp_path / "ov/openvino_model.bin").stat().st_size < 1.1 * weights
    pipeline = openvino_genai.LLMPipeline(str(tmp_path / "ov"), "CPU")
    said = pipeline.generate("the cat sat on a", max_new_tokens=3, apply_chat_template=False)
    assert said.split()[:2] == ["mat", "and"]


@pytest.mark.slow
def test_a_sliding_window_is_refused(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sliding"
    config = MistralConfig(
        vocab_size=300, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, sliding_window=4,
    )  # fmt: skip
    MistralForCausalLM(config).save_pretrained(folder)
    with pytest.raises(LoadError, match=r"a mistral model .* in a DynamicSlidingWindowLayer"):
        export_folder(folder, tmp_path / "ov", ignored)


def test_what_cannot_be_converted_is_told(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"config\.json cannot be read"):
        export_folder(tmp_path, tmp_path / "ov", ignored)
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "llama", "quantization_config": {"quant_method": "gptq"}})
    )
    with pytest.raises(LoadError, match=r"quantized already \(gptq\)"):
        export_folder(tmp_path, tmp_path / "ov", ignored)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(LoadError, match="cannot be loaded as a language model"):
        export_folder(tmp_path, tmp_path / "ov", ignored)
