"""What each call asks for: the tables from methods and paths to what a key must allow.

What the tables do not know needs a key all the same, an administrator's where it could change
something: a new route is closed until it is written down here.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from ds_serve.gateway.text_body import UNVERSIONED
from ds_serve.security.guard import Kind


class Access(NamedTuple):
    """`kind` is None where nobody is asked for a key. `model` is "" where the call is about none,
    or says only later which.
    """

    kind: Kind | None
    model: str = ""


OPEN = Access(None)

_RPCS: dict[str, tuple[Kind | None, str]] = {
    "ServerLive": (None, ""),
    "ServerReady": (None, ""),
    "ModelReady": (Kind.READ, "name"),
    "ServerMetadata": (Kind.READ, ""),
    "ModelMetadata": (Kind.READ, "name"),
    "ModelInfer": (Kind.INFER, "model_name"),
    "ModelStreamInfer": (Kind.INFER, "model_name"),
    "ModelConfig": (Kind.READ, "name"),
    "ModelStatistics": (Kind.READ, "name"),
    "RepositoryIndex": (Kind.READ, ""),
    "RepositoryModelLoad": (Kind.CONTROL, "model_name"),
    "RepositoryModelUnload": (Kind.CONTROL, "model_name"),
    "SystemSharedMemoryStatus": (Kind.MEMORY, ""),
    "SystemSharedMemoryRegister": (Kind.MEMORY, ""),
    "SystemSharedMemoryUnregister": (Kind.MEMORY, ""),
    "CudaSharedMemoryStatus": (Kind.MEMORY, ""),
    "CudaSharedMemoryRegister": (Kind.MEMORY, ""),
    "CudaSharedMemoryUnregister": (Kind.MEMORY, ""),
    "TraceSetting": (Kind.ADMIN, "model_name"),
    "LogSettings": (Kind.ADMIN, ""),
}
"""A method of the inference service, and the field of its request that names the model."""

_MODEL = r"/v2/models/(?P<model>[^/]+)(?:/versions/[^/]+)?"
_REPOSITORY = r"/v2/repository(?:/[^/]+)?"
_PATHS: list[tuple[str, Kind | None]] = [
    (r"/health(?:/live|/ready)?|/v2/health/(?:live|ready)", None),
    (_MODEL + r"/(?:infer|generate|generate_stream)", Kind.INFER),
    (_MODEL + r"/trace/setting", Kind.ADMIN),
    (r"/v2/trace/setting|/v2/logging", Kind.ADMIN),
    (r"/v2/models/stats", Kind.READ),
    (_MODEL + r"(?:/ready|/config|/stats)?", Kind.READ),
    (_REPOSITORY + r"/models/(?P<model>[^/]+)/(?:load|unload)", Kind.CONTROL),
    (_REPOSITORY + r"/index", Kind.READ),
    (r"/v2/(?:system|cuda)sharedmemory/.*", Kind.MEMORY),
    (r"/v1/models/(?P<model>.+)", Kind.READ),
    (r"/v1/(?:load|unload)_lora_adapter", Kind.ADMIN),
]
"""The first that fits the whole path counts."""

_COMPILED = [(re.compile(pattern, re.DOTALL), kind) for pattern, kind in _PATHS]
_READING = ("GET", "HEAD", "OPTIONS")


def of_rpc(name: str, request: Any) -> Access:
    """Of a method of the inference service. `request` is its message; of a stream each one."""
    kind, field = _RPCS.get(name, (Kind.ADMIN, ""))
    return Access(kind, getattr(request, field) if field else "")


def of_http(method: str, path: str, open_metrics: bool = False) -> Access:
    """Of a request. `path` is without escapes, as the router sees it. The calls below /v1/ that
    have a body name their model there; others there are about what a model, or a client, has made.
    """
    if path == "/metrics" and open_metrics:
        return OPEN
    for pattern, kind in _COMPILED:
        if match := pattern.fullmatch(path):
            return Access(kind, match.groupdict().get("model") or "")
    if method in ("POST", "DELETE") and (path.startswith("/v1/") or path in UNVERSIONED):
        return Access(Kind.INFER)
    return Access(Kind.READ if method in _READING else Kind.ADMIN)
