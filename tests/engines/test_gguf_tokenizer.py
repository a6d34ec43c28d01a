"""The tokenizer that clients get out of a GGUF file."""

from __future__ import annotations

import json

import pytest

from ds_engines.errors import LoadError
from ds_engines.gguf_tokenizer import main, write
from ds_engines.openvino_schema import write_empty_model
from ds_serve.catalogue import fetch

MODEL = "smollm2-135m-instruct"


def test_a_model_of_the_catalogue(tmp_path):
    write(fetch(MODEL), tmp_path)
    made = json.loads((tmp_path / "tokenizer.json").read_text())
    vocabulary = made["model"]["vocab"]
    assert len(vocabulary) == 49152
    assert vocabulary["<|im_end|>"] == 2
    assert {"id": 2, "content": "<|im_end|>", "special": True}.items() <= made["added_tokens"][
        2
    ].items()
    # Every merge joins two tokens to a third.
    for merge in made["model"]["merges"]:
        first, second = merge.split(" ")
        assert first + second in vocabulary
    assert made["pre_tokenizer"]["pretokenizers"][0]["type"] == "Digits"
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["eos_token"] == "<|im_end|>"
    assert "<|im_start|>" in config["chat_template"]


def test_a_file_without_such_a_tokenizer_is_refused(tmp_path):
    write_empty_model(tmp_path / "empty.gguf", 32)
    with pytest.raises(LoadError, match="has a tokenizer of kind None, not gpt2"):
        write(tmp_path / "empty.gguf", tmp_path)


def test_a_file_that_there_is_not(tmp_path, capsys):
    assert main([str(tmp_path / "none.gguf"), "-o", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("error: cannot read")
