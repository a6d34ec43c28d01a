"""The client SDK: numpy in, numpy out; text in, text out.

with Client("localhost:8001") as client:
    client.infer("magika", {"bytes": array})["target_label"]
    for piece in client.generate("smollm2-135m-instruct", "Hello", max_tokens=32): ...
"""

from ds_client.aio import AsyncClient
from ds_client.aio_pipeline import AsyncPipeline
from ds_client.client import Client
from ds_client.errors import (
    AccessDenied,
    Cancelled,
    ClientError,
    DeadlineExceeded,
    Forbidden,
    InvalidRequest,
    Lost,
    ModelNotFound,
    Overloaded,
    RateLimited,
    ServerFailure,
    TooLarge,
    Unauthenticated,
    Unavailable,
    Unreachable,
    Unsupported,
)
from ds_client.infos import (
    Duration,
    IndexEntry,
    ModelInfo,
    ServerInfo,
    Statistics,
    TensorInfo,
)
from ds_client.messages import Reply
from ds_client.pipeline import Pipeline
from ds_client.retry import Retry
from ds_client.sequence import AsyncInferSequence, InferSequence
from ds_client.settings import TLS
from ds_client.tensors import Tensor, bfloat16

__all__ = [
    "TLS",
    "AccessDenied",
    "AsyncClient",
    "AsyncInferSequence",
    "AsyncPipeline",
    "Cancelled",
    "Client",
    "ClientError",
    "DeadlineExceeded",
    "Duration",
    "Forbidden",
    "IndexEntry",
    "InferSequence",
    "InvalidRequest",
    "Lost",
    "ModelInfo",
    "ModelNotFound",
    "Overloaded",
    "Pipeline",
    "RateLimited",
    "Reply",
    "Retry",
    "ServerFailure",
    "ServerInfo",
    "Statistics",
    "Tensor",
    "TensorInfo",
    "TooLarge",
    "Unauthenticated",
    "Unavailable",
    "Unreachable",
    "Unsupported",
    "bfloat16",
]
