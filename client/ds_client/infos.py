"""What a server says of itself and of its models."""

from __future__ import annotations

from dataclasses import dataclass

from ds_proto import grpc_service_pb2 as pb


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """`shape` has -1 where a dimension may vary; the batch dimension is included."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a model takes and gives."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """Who answers, and which extensions of the protocol it speaks."""

    name: str
    version: str
    extensions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """A model version that the server knows. `state` is READY, LOADING, UNLOADING or UNAVAILABLE,
    or "" where it was never loaded; `reason` says why, where there is something to say.
    """

    name: str
    version: str
    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class Duration:
    """How often something happened, and the seconds that it took in all."""

    count: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Statistics:
    """Of one model version since it was loaded.

    `rows` have run in `executions` of the engine. `durations` by what was timed: success, fail,
    queue, compute_input, compute_infer, compute_output, cache_hit, cache_miss.
    """

    name: str
    version: str
    rows: int
    executions: int
    durations: dict[str, Duration]


def model_info(message: pb.ModelMetadataResponse) -> ModelInfo:
    return ModelInfo(
        name=message.name,
        versions=tuple(message.versions),
        platform=message.platform,
        inputs=tuple(_tensor_info(tensor) for tensor in message.inputs),
        outputs=tuple(_tensor_info(tensor) for tensor in message.outputs),
    )


def server_info(message: pb.ServerMetadataResponse) -> ServerInfo:
    return ServerInfo(message.name, message.version, tuple(message.extensions))


def index_of(message: pb.RepositoryIndexResponse) -> list[IndexEntry]:
    return [
        IndexEntry(entry.name, entry.version, entry.state, entry.reason) for entry in message.models
    ]


def statistics_of(message: pb.ModelStatisticsResponse) -> list[Statistics]:
    return [
        Statistics(
            name=model.name,
            version=model.version,
            rows=model.inference_count,
            executions=model.execution_count,
            durations={
                field.name: Duration(value.count, value.ns / 1e9)
                for field, value in model.inference_stats.ListFields()
            },
        )
        for model in message.model_stats
    ]


def _tensor_info(message: pb.ModelMetadataResponse.TensorMetadata) -> TensorInfo:
    return TensorInfo(message.name, message.datatype, tuple(message.shape))
