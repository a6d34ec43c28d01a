from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from ds_engines.errors import ConfigError
from ds_serve.model_files import SUPPORTED
from ds_serve.models import resolve, resolve_all

# ModelProto: ir_version 8; graph, a message of 2 bytes that names it "g"... and no more.
ONNX = b"\x08\x08" + b"\x3a\x03\x12\x01g" + b"\x42\x02\x10\x0d"
GGUF = b"GGUF\x03\x00\x00\x00"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def put(path: Path, data: bytes = ONNX) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def refusal(argument: object) -> str:
    with pytest.raises(ConfigError) as refused:
        resolve(str(argument))
    return str(refused.value)


def test_an_onnx_file_is_a_tensor_model_named_after_itself(folder: Path) -> None:
    source = resolve(str(put(folder / "resnet-50.onnx")))
    assert (source.name, source.task, source.engine) == ("resnet-50", "tensor", "onnxruntime")
    assert (source.artifact, source.config, source.version) == (
        folder / "resnet-50.onnx",
        None,
        "1",
    )
    assert "ONNX Runtime" in source.why


def test_a_gguf_file_is_a_text_model(folder: Path) -> None:
    source = resolve(str(put(folder / "chat.Q4_1.gguf", GGUF)))
    assert (source.name, source.task, source.engine) == ("chat.Q4_1", "text", "openvino-genai")


@pytest.mark.parametrize(("data", "task"), [(ONNX, "tensor"), (GGUF, "text")])
def test_content_decides_not_the_suffix(folder: Path, data: bytes, task: str) -> None:
    assert resolve(str(put(folder / "weights.bin", data))).task == task


def test_every_real_onnx_file_at_hand_is_told(folder: Path) -> None:
    import onnx

    light = Path(onnx.__file__).parent / "backend/test/data/light"
    files = sorted(light.glob("*.onnx"))
    assert len(files) > 5
    assert {resolve(str(file)).engine for file in files} == {"onnxruntime"}


def test_a_name_can_be_given(folder: Path) -> None:
    put(folder / "my model.onnx")
    assert resolve("mine=my model.onnx").name == "mine"


def test_a_path_with_an_equals_sign_is_still_a_path(folder: Path) -> None:
    put(folder / "runs/lr=3/net.onnx")
    assert resolve("runs/lr=3/net.onnx").name == "net"
    put(folder / "lr=3.onnx")
    assert "--model NAME='lr=3.onnx'" in refusal("lr=3.onnx")


def test_a_relative_path_becomes_absolute(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(folder / "digits/model.onnx")
    (folder / "digits/sub").mkdir()
    monkeypatch.chdir(folder / "digits/sub")
    source = resolve("../model.onnx")
    assert source.artifact == folder / "digits/model.onnx"
    assert source.name == "digits"


def test_a_home_folder_is_expanded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    put(folder / "net.onnx")
    assert resolve("~/net.onnx").artifact == folder / "net.onnx"


@pytest.mark.parametrize("place", ["model.onnx", "1/model.onnx"])
def test_a_folder_of_one_model(folder: Path, place: str) -> None:
    put(folder / "digits" / place)
    config = put(folder / "digits/config.pbtxt", b"")
    source = resolve("digits")
    assert (source.name, source.config, source.version) == ("digits", config, "1")
    assert source.artifact == folder / "digits" / place
    assert msgspec.structs.replace(source, folder=None) == resolve(f"digits/{place}")


def test_the_latest_version_folder_is_served(folder: Path) -> None:
    for version in ("2", "10", "9"):
        put(folder / "digits" / version / "model.onnx")
    source = resolve("digits")
    assert (source.artifact, source.version) == (folder / "digits/10/model.onnx", "10")
    assert resolve("digits/2").version == "2"


def test_a_folder_of_several_models_is_refused(folder: Path) -> None:
    put(folder / "nets/a.onnx")
    put(folder / "nets/b.onnx")
    assert "several models (a.onnx, b.onnx)" in refusal("nets")


def test_a_folder_of_model_folders_says_how_to_name_them(folder: Path) -> None:
    put(folder / "models/a/1/model.onnx")
    put(folder / "models/b/model.onnx")
    assert "--model models/a --model models/b" in refusal("models")


def test_a_hugging_face_folder_without_an_architecture_is_refused(folder: Path) -> None:
    put(folder / "llama/config.json", b"{}")
    put(folder / "llama/model.safetensors", b"\0")
    assert "Hugging Face folder" in refusal("llama")
    assert "architectures" in refusal("llama")


def test_an_empty_folder_is_refused(folder: Path) -> None:
    (folder / "empty").mkdir()
    assert refusal("empty") == f"the folder empty holds no model file; {SUPPORTED}"


@pytest.mark.parametrize(
    ("file", "data", "said"),
    [
        ("net.plan", b"trtp....", "no whole TensorRT plan"),
        ("net.engine", b"", "no whole TensorRT plan"),
        ("net.pt", b"PK\x03\x04", "PyTorch"),
        ("net.pt2", b"PK\x03\x04", "torch.export"),
        ("net.pt", b"\x80\x02ctorch", "PyTorch"),
        ("net.ckpt", b"\x80\x02ctorch", "a pickle"),
        ("net.safetensors", b"\x08\0\0\0\0\0\0\0{}", "safetensors"),
        ("net.onnx", b"", "an empty file"),
        ("net.onnx", b"<html>", "a text file"),
        ("net.onnx", ONNX[:-1], "cut short"),
        ("net.onnx", b"\xff" * 40, "no whole ONNX file"),
        ("net.onnx", b"\x08\x08", "no whole ONNX file"),
        ("net.onnx", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("net", b"\x00\xfe", "not a model file of a known format"),
    ],
)
def test_another_file_is_refused_with_what_it_is(
    folder: Path, file: str, data: bytes, said: str
) -> None:
    message = refusal(put(folder / file, data))
    assert said in message
    assert message.startswith(str(folder / file))
    assert message.endswith(SUPPORTED)


def test_a_folder_of_a_foreign_file_names_it(folder: Path) -> None:
    put(folder / "keras/model.keras", b"PK..")
    assert "model.keras, a Keras archive" in refusal("keras")


def test_a_model_under_the_name_of_another_kind_is_told_by_its_content(folder: Path) -> None:
    file = put(folder / "quantized_model.pt", ONNX)
    alone = resolve(str(file))
    assert (alone.name, alone.engine) == ("quantized_model", "onnxruntime")
    put(folder / "net/1/model.pt", ONNX)
    put(folder / "net/1/weights.pt", b"PK\x03\x04")
    assert resolve("net").artifact == folder / "net/1/model.pt"
    # What is called as a model comes first.
    put(folder / "net/1/model.onnx", ONNX)
    assert resolve("net").artifact == folder / "net/1/model.onnx"


def test_a_pipe_is_refused_rather_than_read(folder: Path) -> None:
    os.mkfifo(folder / "net.onnx")
    assert "not a regular file" in refusal("net.onnx")


def test_a_missing_file_suggests_near_ones(folder: Path) -> None:
    put(folder / "resnet50.onnx")
    assert refusal("resnet5.onnx").endswith("did you mean resnet50.onnx?")
    assert "of that path only" in refusal("there/is/none.onnx")


def test_a_missing_name_suggests_catalogue_names(folder: Path) -> None:
    message = refusal("smollm-135m")
    assert "did you mean smollm2-135m-instruct?" in message
    assert "nor is there a file or folder of that name" in message


def test_a_hub_id_and_an_address_are_refused_by_name(folder: Path) -> None:
    assert "id of the Hugging Face hub" in refusal("org/chat-7b")
    assert "pip install" in refusal("org/chat-7b")


@pytest.mark.parametrize("argument", ["", "x=", "=magika", "a b=magika", "..=magika"])
def test_a_malformed_argument_is_refused(folder: Path, argument: str) -> None:
    assert "--model" in refusal(argument)


def test_a_catalogue_name_is_fetched(folder: Path) -> None:
    wanted: list[str] = []

    def fetch(name: str) -> Path:
        wanted.append(name)
        return folder / "cached.onnx"

    source = resolve("types=magika", fetch=fetch)
    assert wanted == ["magika"]
    assert (source.name, source.engine) == ("types", "onnxruntime")
    assert source.artifact == folder / "cached.onnx"


def test_a_file_of_a_catalogue_name_needs_a_path(folder: Path) -> None:
    put(folder / "magika")
    assert resolve("./magika").artifact == folder / "magika"


def test_two_models_of_one_name_are_refused_before_anything_is_fetched(folder: Path) -> None:
    put(folder / "a/net.onnx")
    put(folder / "b/net.onnx")

    def fetch(name: str) -> Path:
        pytest.fail(f"fetched {name}")

    with pytest.raises(ConfigError, match="2 models are named 'net'"):
        resolve_all(["magika", "a/net.onnx", "b/net.onnx"], fetch=fetch)
    names = [source.name for source in resolve_all(["a/net.onnx", "other=b/net.onnx"])]
    assert names == ["net", "other"]


@pytest.mark.parametrize(
    ("file", "data", "name"),
    [
        ("net.xml", b'<?xml version="1.0"?>\n<net name="n">', "net"),
        ("net.tflite", b"\x1c\0\0\0TFL3", "net"),
        ("ocr/inference.pdmodel", b"\x0a\x01", "ocr"),
        ("notes/saved_model.pb", b"\x08\x01", "notes"),
        ("notes/1/saved_model.pb", b"\x08\x01", "notes"),
    ],
)
def test_openvino_runs_other_frameworks_models(
    folder: Path, file: str, data: bytes, name: str
) -> None:
    path = put(folder / file, data)
    source = resolve(str(path))
    assert (source.name, source.task, source.engine) == (name, "tensor", "openvino")
    assert resolve(str(path.parent if path.parent != folder else path)).artifact == source.artifact


def test_a_text_model_for_openvino_is_no_tensor_model(folder: Path) -> None:
    for part in ("openvino_model.xml", "openvino_tokenizer.xml"):
        put(folder / "chat" / part, b"<net >")
    source = resolve("chat")
    assert (source.task, source.artifact) == ("text", folder / "chat")


def test_a_saved_model_of_a_repository_may_be_a_folder_with_the_format_in_its_name(
    folder: Path,
) -> None:
    put(folder / "notes/2/model.savedmodel/saved_model.pb", b"\x08\x01")
    source = resolve("notes")
    assert (source.name, source.version, source.engine) == ("notes", "2", "openvino")
