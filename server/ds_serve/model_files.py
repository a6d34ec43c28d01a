"""Telling what a model file is from what is in it, without loading an engine."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from ds_engines import torch_archive
from ds_engines.errors import ConfigError

Format = Literal[
    "onnx", "gguf", "python", "openvino", "tensorflow", "tflite", "paddle", "torch", "tensorrt",
    "torchscript", "aotinductor",
]  # fmt: skip

PYTHON = ".py"

SAVED_MODEL = "saved_model.pb"
"""TensorFlow's, which stands for the folder that it is in."""

SUPPORTED = (
    "supported are ONNX, GGUF, OpenVINO, TensorFlow, TensorFlow Lite, Paddle and torch.export's "
    "models, TensorRT plans and, with --trust, TorchScript and AOTInductor packages"
)

_HEAD = 512
_ONNX_GRAPH = 7
"""The number of ModelProto's field `graph`, the one that every ONNX file has."""

_TEXT = frozenset(b"\t\n\f\r") | frozenset(range(32, 127))

_TORCH = "a PyTorch file; export the model with torch.export, or to ONNX"
_PICKLE = (
    "a pickle, as torch.save writes it: to read it is to run what code it holds, so it never is; "
    "export the model with torch.export, or to ONNX"
)
_ARCHIVES: dict[str | None, str] = {
    "pickle": _PICKLE,
}
_TORCHS: dict[str | None, Format] = {
    "exported": "torch",
    "torchscript": "torchscript",
    "aotinductor": "aotinductor",
}
_MAGIC: dict[bytes, Format] = {b"GGUF": "gguf", b"ptrt": "tensorrt", b"vtrt": "tensorrt"}
"""The first four bytes. TensorRT has two kinds of plans: for one release, and for several."""

_ZIP = b"PK\x03\x04"
_TENSORRT = "no whole TensorRT plan, which begins with ptrt or vtrt"
_STARTS = {
    _ZIP: "a zip archive, but not one of PyTorch's",
    b"\x1f\x8b": "a gzip archive; unpack it first",
    b"\x89HDF": "an HDF5 file (Keras?); export it to ONNX",
    b"\x80": _PICKLE,
    b"version https://git-lfs": "a Git LFS pointer, not the file itself; run `git lfs pull`",
}
_SUFFIXES = {
    ".plan": _TENSORRT,
    ".engine": _TENSORRT,
    ".trt": _TENSORRT,
    ".pt": _TORCH,
    ".pth": _TORCH,
    ".pt2": "no whole archive of torch.export",
    ".safetensors": "a safetensors file, weights alone; export the model to ONNX or GGUF",
    ".pb": "a TensorFlow graph; give the SavedModel folder that it was frozen from",
    ".pdiparams": "Paddle's weights alone; give the .pdmodel file beside it",
    ".keras": "a Keras archive; export it to ONNX",
    ".xml": "XML, but not of an OpenVINO network",
}


def format_of(path: Path) -> Format:
    """The format of the model file `path`; ConfigError that says what it is where none is served.

    Only its name makes a file Python: what a client sends never has it.
    """
    if is_saved_model(path):
        return "tensorflow"
    if not path.is_file():
        raise ConfigError(f"{path} is not a regular file; {SUPPORTED}")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise ConfigError(f"the model file {path} cannot be read: {error.strerror}") from error
    if path.suffix == PYTHON:
        return "python"
    if head[:4] in _MAGIC:
        return _MAGIC[head[:4]]
    if head.startswith(_ZIP) and (kind := _TORCHS.get(torch_archive.kind(path))):
        return kind
    if found := _openvinos(path, head):
        return found
    if size and _is_onnx(path):
        return "onnx"
    raise ConfigError(f"{path} is {describe(path, head)}; {SUPPORTED}")


def _openvinos(path: Path, head: bytes) -> Format | None:
    """Of those that OpenVINO reads. Paddle's file says nothing of itself but its name."""
    if path.suffix == ".xml" and b"<net " in head:
        return "openvino"
    if head[4:8] == b"TFL3":
        return "tflite"
    return "paddle" if head and path.suffix == ".pdmodel" else None


def is_saved_model(path: Path) -> bool:
    """Whether it is TensorFlow's SavedModel: its folder, or the file in it that has the graph."""
    return (path / SAVED_MODEL).is_file() or (path.name == SAVED_MODEL and path.is_file())


def is_foreign(path: Path) -> bool:
    """Whether its suffix is that of a model format that is not served."""
    return path.suffix.lower() in _SUFFIXES


def is_misnamed(path: Path) -> bool:
    """Whether its suffix is that of another model format, and its content can be served."""
    try:
        return is_foreign(path) and bool(format_of(path))
    except ConfigError:
        return False


def describe(path: Path, head: bytes = b"") -> str:
    """What a file is that is not served, by its suffix and its first bytes, `head`."""
    if head.startswith(_ZIP) and (said := _ARCHIVES.get(torch_archive.kind(path))):
        return said
    if said := _SUFFIXES.get(path.suffix.lower()):
        return said
    for start, said in _STARTS.items():
        if head.startswith(start):
            return said
    if set(head) <= _TEXT:
        return "a text file" if head else "an empty file"
    if path.suffix.lower() == ".onnx":
        return "no whole ONNX file: cut short, or something else under that name"
    return "not a model file of a known format"


def _is_onnx(path: Path) -> bool:
    """Whether the file is one protobuf message, to the last byte, with a graph in it."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return _ONNX_GRAPH in set(_fields(data))
        except (ValueError, IndexError):
            return False


def _fields(data: mmap.mmap) -> Iterator[int]:
    """Numbers of the message's fields; ValueError or IndexError where it is not a message."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        match tag & 7:
            case 0:
                _, at = _varint(data, at)
            case 1:
                at += 8
            case 2:
                length, at = _varint(data, at)
                at += length
            case 5:
                at += 4
            case wire_type:
                raise ValueError(wire_type)
        yield tag >> 3
    if at != len(data):
        raise ValueError(at)


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError(at)
