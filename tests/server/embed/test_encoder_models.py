"""Which folders are encoders', and what is made of them."""

from __future__ import annotations

from pathlib import Path

import encoder_folders
import pytest

from ds_engines.errors import ConfigError
from ds_serve import models
from ds_serve.text_models import ENCODER, Wish

CASES = encoder_folders.cases()


@pytest.mark.parametrize("name", CASES)
def test_a_folder_of_an_encoder(name: str, tmp_path: Path) -> None:
    folder = encoder_folders.write(tmp_path / name, CASES[name])
    source = models.resolve(str(folder))
    assert (source.task, source.engine, source.artifact) == ("text", ENCODER, folder)
    assert "vectors or classes" in source.why


def test_an_encoder_that_was_converted_for_openvino(tmp_path: Path) -> None:
    folder = encoder_folders.write(tmp_path / "tone", CASES["bert"])
    (folder / "openvino_model.xml").write_text("<net/>")
    assert models.resolve(str(folder)).engine == ENCODER


def test_an_onnx_file_beside_is_a_tensor_model_unless_said_otherwise(tmp_path: Path) -> None:
    folder = encoder_folders.write(tmp_path / "tone", CASES["bert"])
    (folder / "model.onnx").write_bytes(b"\x3a\x00")
    assert models.resolve(str(folder)).engine == "onnxruntime"
    (source,) = models.resolve_all([str(folder)], wish=Wish(engine=ENCODER))
    assert (source.engine, source.artifact) == (ENCODER, folder)


def test_the_catalogues_is_the_whole_folder(tmp_path: Path) -> None:
    source = models.resolve("all-minilm-l6-v2", fetch=lambda name: tmp_path / "model.safetensors")
    assert (source.engine, source.artifact) == (ENCODER, tmp_path)


def test_what_is_not_known_is_converted(tmp_path: Path) -> None:
    folder = encoder_folders.write(tmp_path / "new", CASES["bert"], {"model_type": "modernbert"})
    asked: list[tuple[str, Path]] = []

    def convert(engine: str, given: Path) -> Path:
        asked.append((engine, given))
        return tmp_path / "made"

    (source,) = models.resolve_all([str(folder)], convert=convert)
    assert source.artifact == tmp_path / "made"
    assert asked == [(ENCODER, folder)]


def test_an_id_of_the_hub_must_be_fetched_first() -> None:
    with pytest.raises(ConfigError, match="hf download"):
        models.resolve_all(["BAAI/bge-small-en"], wish=Wish(engine=ENCODER))
