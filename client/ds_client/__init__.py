"""The client SDK: numpy in, numpy out; text in, text out.

with Client("localhost:8001") as client:
    client.infer("magika", {"bytes": array})["target_label"]
    for piece in client.generate("smollm2-135m-instruct", "Hello", max_tokens=32): ...
"""

from ds_client.aio import AsyncClient
from ds_client.client import Client
from ds_client.errors import (
    AccessDenied,
    Cancelled,
    ClientError,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    ServerFailure,
    TooLarge,
    Unavailable,
    Unsupported,
)
from ds_client.messages import (
    Duration,
    ModelInfo,
    Reply,
    ServerInfo,
    Statistics,
    TensorInfo,
)
from ds_client.tensors import Tensor, bfloat16

__all__ = [
    "AccessDenied",
    "AsyncClient",
    "Cancelled",
    "Client",
    "ClientError",
    "DeadlineExceeded",
    "Duration",
    "InvalidRequest",
    "ModelInfo",
    "ModelNotFound",
    "Overloaded",
    "Reply",
    "ServerFailure",
    "ServerInfo",
    "Statistics",
    "Tensor",
    "TensorInfo",
    "TooLarge",
    "Unavailable",
    "Unsupported",
    "bfloat16",
]
