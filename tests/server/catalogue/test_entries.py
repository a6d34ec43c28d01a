from __future__ import annotations

import re
import tomllib
from importlib import resources

import pytest

from ds_engines.errors import ConfigError
from ds_serve import catalogue


def test_every_entry_of_the_table_is_there_under_its_own_name() -> None:
    table = tomllib.loads(
        resources.files("ds_serve.catalogue").joinpath("entries.toml").read_text("utf-8")
    )
    assert [entry["name"] for entry in table["entry"]] == list(catalogue.names())
    assert {"smollm2-135m-instruct", "magika", "silero-vad"} <= set(catalogue.names())


@pytest.mark.parametrize("entry", catalogue.entries(), ids=lambda entry: entry.name)
def test_an_entry_can_be_served(entry: catalogue.Entry) -> None:
    assert re.fullmatch(r"[A-Za-z0-9._-]+", entry.name)
    suffixes = {"openvino-genai": ".gguf", "encoder": ".safetensors", "onnxruntime": ".onnx"}
    assert entry.files[0].name.endswith(suffixes[entry.engine])
    assert len({file.name for file in entry.files}) == len(entry.files)
    assert catalogue.get(entry.name) is entry


def test_an_unknown_name_with_nothing_near_lists_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"'zzz'.*there are: smollm2-135m-instruct, magika"):
        catalogue.get("zzz")
