"""Every call but inference: the message to send and how to read the answer, for both clients."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from ds_client import infos
from ds_client.errors import InvalidRequest
from ds_client.infos import IndexEntry, ModelInfo, ServerInfo, Statistics
from ds_proto import grpc_service_pb2 as pb
from ds_proto.model_config_pb2 import ModelConfig

T = TypeVar("T")

Config = str | Mapping[str, Any]
"""A model's configuration: JSON text, or what json.dumps takes."""

Files = Mapping[str, bytes | Path]
"""Paths inside the model's folder, such as 1/model.onnx, to a file's bytes or where it lies."""


@dataclass(frozen=True, slots=True)
class Question(Generic[T]):
    """`method` is called with `request`; `read` makes what the caller gets of the answer."""

    method: str
    request: Message
    read: Callable[[Any], T]


def live() -> Question[bool]:
    return Question("ServerLive", pb.ServerLiveRequest(), attrgetter("live"))


def ready(model: str, version: str) -> Question[bool]:
    if not model:
        return Question("ServerReady", pb.ServerReadyRequest(), attrgetter("ready"))
    request = pb.ModelReadyRequest(name=model, version=version)
    return Question("ModelReady", request, attrgetter("ready"))


def server() -> Question[ServerInfo]:
    return Question("ServerMetadata", pb.ServerMetadataRequest(), infos.server_info)


def metadata(model: str, version: str) -> Question[ModelInfo]:
    request = pb.ModelMetadataRequest(name=model, version=version)
    return Question("ModelMetadata", request, infos.model_info)


def config(model: str, version: str) -> Question[ModelConfig]:
    request = pb.ModelConfigRequest(name=model, version=version)
    return Question("ModelConfig", request, attrgetter("config"))


def statistics(model: str, version: str) -> Question[list[Statistics]]:
    request = pb.ModelStatisticsRequest(name=model, version=version)
    return Question("ModelStatistics", request, infos.statistics_of)


def index(ready: bool) -> Question[list[IndexEntry]]:
    return Question("RepositoryIndex", pb.RepositoryIndexRequest(ready=ready), infos.index_of)


def load(model: str, config: Config | None, files: Files) -> Question[None]:
    """Raises InvalidRequest for a configuration or a file that cannot be sent."""
    request = pb.RepositoryModelLoadRequest(model_name=model)
    if config is not None:
        request.parameters["config"].string_param = _json(config)
    for path, content in files.items():
        request.parameters[f"file:{path}"].bytes_param = _bytes(path, content)
    return Question("RepositoryModelLoad", request, _nothing)


def unload(model: str, dependents: bool) -> Question[None]:
    request = pb.RepositoryModelUnloadRequest(model_name=model)
    request.parameters["unload_dependents"].bool_param = dependents
    return Question("RepositoryModelUnload", request, _nothing)


def register(name: str, size: int) -> Question[None]:
    """The memory object of that name, as a region of the same name."""
    request = pb.SystemSharedMemoryRegisterRequest(name=name, key=f"/{name}", byte_size=size)
    return Question("SystemSharedMemoryRegister", request, _nothing)


def unregister(name: str) -> Question[None]:
    request = pb.SystemSharedMemoryUnregisterRequest(name=name)
    return Question("SystemSharedMemoryUnregister", request, _nothing)


def _nothing(_: Message) -> None:
    return None


def _json(config: Config) -> str:
    if isinstance(config, str):
        return config
    try:
        return json.dumps(config)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"the configuration cannot be sent as JSON: {error}") from None


def _bytes(path: str, content: bytes | Path) -> bytes:
    if isinstance(content, bytes):
        return content
    try:
        return content.read_bytes()
    except OSError as error:
        raise InvalidRequest(f"file {path!r}: {content} cannot be read: {error.strerror}") from None
