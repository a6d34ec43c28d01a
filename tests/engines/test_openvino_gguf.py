"""The header of a GGUF file, whole, cut short and garbled."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_engines.errors import LoadError
from ds_engines.gguf import read_metadata
from ds_engines.openvino_model import check_artifact
from ds_engines.openvino_schema import write_empty_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small but whole GGUF file."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_empty_model(path, vocabulary=8)
    return path


def read(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.gguf")
        path.write_bytes(data)
        read_metadata(path)


def test_a_whole_file_is_read(model: Path) -> None:
    info = read_metadata(model)
    assert (info.architecture, info.context_length) == ("llama", 64)
    assert (info.layers, info.heads_kv, info.head_size) == (1, 1, 64)
    assert info.name == "tiny"
    assert info.quantization == "F32"
    assert info.eos_token_id is None
    assert info.chat_template is None


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"cannot read .*absent\.gguf: No such file"):
        read_metadata(tmp_path / "absent.gguf")
    with pytest.raises(LoadError, match="Is a directory"):
        read_metadata(tmp_path)


def test_another_format_is_named_by_how_it_begins(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x08\x07\x12\x04 more")
    with pytest.raises(LoadError, match=r"not a GGUF file: it begins with b'\\x08\\x07"):
        read_metadata(path)


def test_an_unknown_version_is_refused() -> None:
    with pytest.raises(LoadError, match="GGUF version 9"):
        read(b"GGUF" + (9).to_bytes(4, "little") + bytes(16))


@given(st.data())
def test_a_file_cut_anywhere_is_refused(model: Path, data: st.DataObject) -> None:
    whole = model.read_bytes()
    size = data.draw(st.integers(0, len(whole) - 33))  # the last bytes may be padding
    with pytest.raises(LoadError):
        read(whole[:size])


def test_a_file_cut_inside_its_tensors_says_what_it_needs(model: Path) -> None:
    whole = model.read_bytes()
    with pytest.raises(LoadError, match=f"has {len(whole) - 100} bytes, and its tensors need"):
        read(whole[:-100])


@given(st.data(), st.binary(min_size=1, max_size=12))
def test_garbled_bytes_are_read_or_refused(model: Path, data: st.DataObject, junk: bytes) -> None:
    whole = bytearray(model.read_bytes())
    at = data.draw(st.integers(0, 1500))
    whole[at : at + len(junk)] = junk
    with contextlib.suppress(LoadError):
        read(bytes(whole))


@given(st.binary(max_size=300))
def test_any_bytes_after_the_magic_are_read_or_refused(data: bytes) -> None:
    with pytest.raises(LoadError):
        read(b"GGUF\x03\x00\x00\x00" + data)


def test_a_file_without_a_tokenizer_cannot_be_served(model: Path) -> None:
    with pytest.raises(LoadError, match="tokenizer of kind None"):
        check_artifact(model)
