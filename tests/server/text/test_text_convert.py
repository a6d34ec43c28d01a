"""What a Hugging Face folder needs before OpenVINO reads it, where nothing is installed for it."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from ds_engines.errors import ConfigError
from ds_serve.text.convert import PYTHON, openvino_folder, weights_of


class Silent:
    def note(self, text: str) -> None:
        pass


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DS_SERVE_CACHE", str(tmp_path / "cache"))
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text(
        '{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}'
    )
    return made


def left(folder: Path) -> list[str]:
    cache = folder.parent / "cache" / "openvino"
    return [path.name for path in cache.iterdir() if path.is_dir() and path.name != ".hashes"]


@pytest.mark.skipif(find_spec("torch") is not None, reason="the libraries are here")
@pytest.mark.slow
def test_the_message_says_what_to_install(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"pip install 'ds-serve\[convert\]'$"):
        openvino_folder(folder, Silent())
    assert left(folder) == []


def test_an_interpreter_without_us(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv(PYTHON, str(python))
    with pytest.raises(ConfigError, match=rf"convert it with {python}: pip install 'ds-serve\[con"):
        openvino_folder(folder, Silent())
    assert left(folder) == []


def test_weights_of_other_kinds(folder: Path) -> None:
    with pytest.raises(ConfigError, match="weights 'int3' are none of int8, int4"):
        openvino_folder(folder, Silent(), "int3")
    assert weights_of(folder) == ""
    (folder / "converted.json").write_text('{"weights": "int4"}')
    assert weights_of(folder) == "int4"


def test_what_is_made_counts_in_the_cache_s_limit(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"  # in the place of the conversion, which takes PyTorch
    python.write_text('#!/bin/sh\nmkdir "$5"\nhead -c 100000 /dev/zero > "$5/weights.bin"\n')
    python.chmod(0o755)
    monkeypatch.setenv(PYTHON, str(python))
    older = tmp_path / "cache" / "openvino" / "older"
    older.mkdir(parents=True)
    (older / "weights.bin").write_bytes(bytes(100_000))
    monkeypatch.setenv("DS_SERVE_CACHE_LIMIT", "150kB")
    made = openvino_folder(folder, Silent())
    assert (made / "weights.bin").exists(), "it is in use"
    assert not older.exists()
    assert openvino_folder(folder, Silent()) == made
