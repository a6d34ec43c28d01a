"""The `config.pbtxt` of a model that is promoted."""

from __future__ import annotations

from pathlib import Path

import msgspec
from google.protobuf import text_format

from ds_engines import config_pbtxt
from ds_engines.base import BatchEngine, EngineOptions, load
from ds_engines.errors import ConfigError
from ds_engines.spec import BatchPolicy, ModelSpec
from ds_quantize.artifact import CONFIG
from ds_quantize.errors import QuantizeError

MAX_BATCH_SIZE = 64
"""The server's default, for a model whose rows were proven independent."""

_LEFT_TO_THE_SERVER = (
    "platform",
    "version_policy",
    "dynamic_batching",
    "instance_group",
    "response_cache",
    "model_transaction_policy",
)


def opened(path: Path, threads: int) -> BatchEngine:
    """The ONNX file in the engine that the server uses for it. Raises LoadError."""
    spec = ModelSpec(
        name=path.name,
        engine="onnxruntime",
        artifact=path,
        batch=BatchPolicy(max_batch_size=MAX_BATCH_SIZE),
    )
    return load(spec, EngineOptions(threads=threads))


def written(spec: ModelSpec, name: str, file: str, backend: str) -> str:
    """Its text: the tensors and how rows join; what an operator decides is left out."""
    config = config_pbtxt.describe(spec)
    for field in _LEFT_TO_THE_SERVER:
        config.ClearField(field)
    config.name, config.backend, config.default_model_filename = name, backend, file
    return text_format.MessageToString(config)


def check_against(folder: Path, spec: ModelSpec, file: str) -> None:
    """Raise QuantizeError where the model's own config.pbtxt does not fit the new version."""
    path = folder / CONFIG
    if not path.is_file():
        return
    spec = msgspec.structs.replace(spec, name=folder.name, artifact=folder / file)
    try:
        config_pbtxt.apply(spec, config_pbtxt.read(path), str(path), folder)
    except ConfigError as error:
        raise QuantizeError(
            f"the new version does not fit the configuration that is there: {error}; "
            "change it, or promote to another model's folder"
        ) from None
