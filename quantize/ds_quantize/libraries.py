"""The libraries that a result depends on, and their versions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ds_quantize.errors import MissingExtra

ALWAYS = ("ds-serve", "numpy", "onnx", "onnxruntime")

EXTRAS: dict[str, tuple[str, ...]] = {
    "quantize": ("onnx-ir", "onnxscript"),
    "quantize-torch": ("torch", "nvidia-modelopt", "torch-pruning", "torchao", "onnxscript"),
    "quantize-llm": (
        "torch", "transformers", "compressed-tensors", "llmcompressor", "nncf", "openvino",
        "openvino-tokenizers",
    ),
    "tensorrt": ("tensorrt", "tensorrt-rtx-cu13-bindings"),
}  # fmt: skip
"""Extra of ds-serve to the distributions that its methods compute with."""

_PACKAGE = Path(__file__).parent


def versions(extras: Iterable[str]) -> dict[str, str]:
    """Distribution to version, of those that are installed."""
    wanted = {*ALWAYS, *(name for extra in extras for name in EXTRAS.get(extra, ()))}
    found = {name: _version(name) for name in sorted(wanted)}
    return {name: number for name, number in found.items() if number}


def missing(error: ImportError, extra: str, what: str) -> MissingExtra:
    """The error to raise where a library cannot be imported."""
    name = error.name or str(error)
    return MissingExtra(f'{what} needs {name!r}: pip install "ds-serve[{extra}]"')


@cache
def code(module: str) -> str:
    """A digest of the source of a module of ours, with all that is in its folder.

    What an older ds-serve has computed is not taken for the work of a newer one.
    """
    place = _PACKAGE.joinpath(*module.split(".")[1:])
    files = sorted(place.parent.glob("*.py")) if place.parent != _PACKAGE else []
    files += sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    digest = hashlib.sha256()
    for path in dict.fromkeys(files):
        digest.update(f"{path.relative_to(_PACKAGE)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
