"""LoRA adapters over one base model: safetensors files, as PEFT writes them.

The library applies one set of adapters to the whole batch, and changes it in a call that
generates: so the engine lets only requests of one adapter run side by side.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ds_engines.errors import ConfigError, LoadError
from ds_engines.openvino_model import IR, ModelInfo, read_json

WEIGHTS = "adapter_model.safetensors"
_LAYER = re.compile(r"^(?:base_model\.model\.)?(.+)\.lora_(?:A|B)(?:\.default)?\.weight$")
MAX_HEADER = 64 << 20


class Adapters:
    """The adapters of a model, by name; "" is the base model alone. Raises ConfigError."""

    def __init__(self, info: ModelInfo, wanted: Sequence[tuple[str, str]]) -> None:
        import openvino_genai  # type: ignore[import-untyped] # noqa: PLC0415

        self._genai = openvino_genai
        if info.gguf is not None:
            raise ConfigError(
                f"--lora {wanted[0][0]}: adapters need the model as a Hugging Face or OpenVINO "
                f"folder, and {info.path.name} is a GGUF file"
            )
        self._found = {name: self._load(info, name, Path(path)) for name, path in wanted}

    def _load(self, info: ModelInfo, name: str, path: Path) -> tuple[Any, float]:
        file = path / WEIGHTS if path.is_dir() else path
        check_layers(info, name, file)
        try:
            adapter = self._genai.Adapter(str(file))
        except RuntimeError as error:
            raise ConfigError(f"--lora {name}={path}: OpenVINO cannot read it: {error}") from error
        return adapter, scale(file)

    def all(self) -> Any:
        """The configuration to load the model with."""
        return self._genai.AdapterConfig(list(self._found.values()))

    def one(self, name: str) -> Any:
        """The configuration under which requests for `name` run."""
        if not name:
            return self._genai.AdapterConfig()
        return self._genai.AdapterConfig(*self._found[name])


def check_layers(info: ModelInfo, name: str, file: Path) -> None:
    """Raise ConfigError where the adapter is for other layers: the library would pass over them."""
    if not file.is_file():
        raise ConfigError(f"--lora {name}: there is no adapter file {file}")
    if file.suffix != ".safetensors":
        raise ConfigError(f"--lora {name}: {file} is not a .safetensors file")
    try:
        layers = lora_layers(file)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--lora {name}: {file} is not a safetensors file: {error}") from error
    if not layers:
        raise ConfigError(f"--lora {name}: {file} holds no LoRA matrices (lora_A, lora_B)")
    graph = (info.path / IR).read_text(encoding="utf-8")
    unknown = [layer for layer in sorted(layers) if f"{layer}/" not in graph]
    if unknown:
        raise ConfigError(
            f"--lora {name}: {file} adapts {unknown[0]}, a layer that {info.path} does not have"
        )


def lora_layers(file: Path) -> set[str]:
    """The layers that a safetensors file adapts. Raises ValueError, OSError."""
    with file.open("rb") as opened:
        size = struct.unpack("<Q", opened.read(8).ljust(8, b"\0"))[0]
        if not 0 < size < MAX_HEADER:
            raise ValueError(f"its header would have {size} bytes")
        header = json.loads(opened.read(size))
    matches = (_LAYER.match(key) for key in header if key != "__metadata__")
    return {match.group(1) for match in matches if match}


def scale(file: Path) -> float:
    """What the product of the matrices is multiplied by: alpha / r, or with rsLoRA alpha / √r.

    1 where there is no adapter_config.json beside them.
    """
    try:
        config = read_json(file.with_name("adapter_config.json"))
    except LoadError as error:
        raise ConfigError(f"--lora: {error}") from error
    rank, alpha = config.get("r", 1), config.get("lora_alpha", config.get("r", 1))
    if not (isinstance(rank, int) and rank > 0 and isinstance(alpha, int | float)):
        raise ConfigError(f"--lora: adapter_config.json beside {file} has r {rank!r}")
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)
