"""Text models as the Hugging Face hub has them, folders and ids: which engine serves one."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from ds_engines import encoder_folder
from ds_engines.errors import ConfigError
from ds_serve.extras import installed
from ds_serve.vllm import devices, installation

AUTO, VLLM, OPENVINO, ENCODER = "auto", "vllm", "openvino-genai", "encoder"
ENGINES = (AUTO, VLLM, OPENVINO, ENCODER)

VECTORS = "an encoder, so it gives vectors or classes on the CPU"

CONFIG = "config.json"
OPENVINO_PARTS = "openvino_"
OPENVINO_MODEL = "openvino_model.xml"
_SENTENCES = "modules.json"
"""What sentence-transformers puts into a folder."""

_ENCODERS = (
    encoder_folder.CLASSIFIER, "BertModel", "RobertaModel", "XLMRobertaModel", "DistilBertModel",
    "MPNetModel", "NomicBertModel", "ModernBertModel", "GteModel", "BertForMaskedLM",
)  # fmt: skip

Convert = Callable[[str, Path], Path]
"""From an engine and a folder that it cannot read to one that it can."""


class Wish(NamedTuple):
    """What the operator says about it: `--engine`, `--vllm-python`, `--device` and `--trust`.

    `elsewhere`: another machine runs the model, so that what is installed here says nothing.
    """

    engine: str = AUTO
    python: str = ""
    device: str = AUTO
    trust: bool = False
    elsewhere: bool = False

    @property
    def for_text(self) -> Wish:
        """What it says about text models: engines of tensor models are none of theirs."""
        return self if self.engine in ENGINES else self._replace(engine=AUTO)


class Choice(NamedTuple):
    """`why` is one sentence for a person."""

    engine: str
    why: str


def is_folder(path: Path) -> bool:
    """Whether it is a Hugging Face folder, or one that was converted for OpenVINO."""
    return (path / OPENVINO_MODEL).is_file() or bool(_config(path))


def needs_conversion(engine: str, folder: Path) -> bool:
    """Whether the engine, which runs on OpenVINO, cannot read it as it is."""
    if engine == ENCODER:
        return bool(encoder_folder.needs_export(folder))
    return engine == OPENVINO and folder.is_dir() and not (folder / OPENVINO_MODEL).is_file()


def require_readable(engine: str, folder: Path) -> None:
    """Raises ConfigError for a folder in a repository that would have to be converted first."""
    if needs_conversion(engine, folder):
        raise ConfigError(
            f"{folder} is a Hugging Face folder, which OpenVINO does not read as it is: give it by "
            "--model, which converts it once, or install vLLM"
        )


def is_encoder(folder: Path) -> bool:
    """Whether it gives vectors or classes, not text, by its files."""
    if (folder / _SENTENCES).is_file():
        return True
    return any(each.endswith(_ENCODERS) for each in _architectures(folder))


def is_plain_encoder(folder: Path) -> bool:
    """Whether it gives vectors, and does not say how: then they are means over the tokens."""
    told = (folder / _SENTENCES).is_file() or classifies(folder)
    return is_encoder(folder) and not told


def classifies(folder: Path) -> bool:
    """Whether it gives classes, by its architecture."""
    return any(each.endswith(encoder_folder.CLASSIFIER) for each in _architectures(folder))


def choose(folder: Path, wish: Wish) -> Choice:
    """Which engine serves a folder. Raises ConfigError for one that cannot, with what to do."""
    what = ", ".join(_architectures(folder)) or "a Hugging Face folder"
    converted = (folder / OPENVINO_MODEL).is_file()
    if converted and not is_encoder(folder) and wish.engine != ENCODER:
        _require(wish, (AUTO, OPENVINO), f"{folder} is converted for OpenVINO")
        return Choice(OPENVINO, "an OpenVINO folder, so OpenVINO GenAI runs it on the CPU")
    if wish.engine == VLLM:
        return _vllm(wish, what)
    if wish.engine == AUTO and _has_gpu_build(wish) and not converted:
        return _vllm(wish, what)
    if wish.engine == ENCODER or (wish.engine == AUTO and is_encoder(folder)):
        return _encoder(what)
    return Choice(OPENVINO, f"{what}, so OpenVINO GenAI runs it on the CPU")


def choose_hub(model: str, wish: Wish) -> Choice:
    """Which engine serves an id of the hub: vLLM, which fetches it."""
    if wish.engine in (AUTO, VLLM):
        asked = wish.engine == VLLM or wish.elsewhere
        if asked or installation.find(installation.interpreter(wish.python)):
            return _vllm(wish, f"{model} of the Hugging Face hub")
        raise ConfigError(
            f"there is no file or folder {model}; as an id of the Hugging Face hub, vLLM would "
            f"fetch and serve it, but it is not installed: {installation.INSTALL}; or give a "
            "folder, a GGUF or ONNX file, or a catalogue name"
        )
    raise ConfigError(
        f"--engine {wish.engine}: {model} is an id of the Hugging Face hub; fetch it first, with "
        f"`hf download {model} --local-dir FOLDER`, and give the folder"
    )


def refuse_file(path: Path, wish: Wish) -> None:
    """Raises ConfigError where a GGUF file is to be served by another engine than OpenVINO."""
    _require(wish, (AUTO, OPENVINO), f"{path} is a GGUF file")


def converter(progress: Any, weights: str = "") -> Convert:
    """What turns a Hugging Face folder into one that OpenVINO reads, once; a language model's
    weights made smaller where `weights` is int8 or int4.
    """

    def convert(engine: str, folder: Path) -> Path:
        if not installed("ds_serve.text.convert"):
            raise ConfigError(f"{folder} is a Hugging Face folder, which OpenVINO does not read")
        module = import_module("ds_serve.text.convert")
        smaller = weights if engine == OPENVINO else ""
        if smaller and smaller not in module.WEIGHTS:
            raise ConfigError(
                f"--quantization {weights}: {folder} is converted for OpenVINO, with weights of "
                f"{' or '.join(module.WEIGHTS)}"
            )
        way = module.ENCODER if engine == ENCODER else smaller
        found: Path = module.openvino_folder(folder, progress, way)
        return found

    return convert


def _require(wish: Wish, engines: tuple[str, ...], what: str) -> None:
    if wish.engine not in engines:
        raise ConfigError(f"--engine {wish.engine}: {what}, which only {OPENVINO} serves")


def _has_gpu_build(wish: Wish) -> bool:
    if wish.elsewhere:
        return wish.device in ("cuda", "rocm")
    if not devices.visible():
        return False
    found = installation.find(installation.interpreter(wish.python))
    return found is not None and not found.for_cpu


def _vllm(wish: Wish, what: str) -> Choice:
    if wish.elsewhere:
        return Choice(VLLM, f"{what}, so vLLM runs it")
    found = installation.require(installation.interpreter(wish.python))
    if found.for_cpu:
        return Choice(VLLM, f"{what}, so vLLM {found.version} runs it on the CPU")
    if not devices.visible():
        raise ConfigError(
            f"--engine vllm: vLLM {found.version} needs a GPU, and there is none here; for a CPU: "
            f"pip install {installation.CPU_BUILD}"
        )
    return Choice(VLLM, f"{what}, so vLLM {found.version} runs it on the GPU")


def _encoder(what: str) -> Choice:
    if not installed("ds_serve.embed"):
        raise ConfigError(
            f"{what} gives vectors or classes, which vLLM serves: {installation.INSTALL}, and "
            "--engine vllm"
        )
    return Choice(ENCODER, f"{what}, so it gives vectors or classes on the CPU")


def _architectures(folder: Path) -> list[str]:
    found = _config(folder).get("architectures") or []
    return [each for each in found if isinstance(each, str)] if isinstance(found, list) else []


def _config(folder: Path) -> dict[str, Any]:
    """Its config.json; nothing where that is no model's."""
    try:
        found = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if isinstance(found, dict) and ("architectures" in found or "model_type" in found):
        return found
    return {}
