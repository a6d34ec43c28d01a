"""grpc.health.v1: whether the server, or one model, answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from grpc_health.v1 import health_pb2

from ds_engines.errors import NotFound, Unavailable
from ds_proto.service import SERVICE
from ds_serve.gateway.gateway import Gateway

HEALTH: str = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
WHOLE = ("", SERVICE)
"""The names under which the server itself is asked for; any other is a model's."""

LOOK_SECONDS = 0.25
"""Between two looks at what is watched."""

Status = health_pb2.HealthCheckResponse


def model_in(request: health_pb2.HealthCheckRequest) -> str:
    """The model that is asked for; "" for the server itself."""
    return "" if request.service in WHOLE else request.service


class Health:
    """The service's two methods."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def check(self, request: health_pb2.HealthCheckRequest) -> health_pb2.HealthCheckResponse:
        """Raises NotFound for a name that is no model's."""
        status = self._status(request.service)
        if status == Status.SERVICE_UNKNOWN:
            raise NotFound(f"there is no service or model {request.service!r}")
        return Status(status=status)

    async def watch(
        self, request: health_pb2.HealthCheckRequest
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """The status now, and each change of it, until the server stops."""
        known = None
        while True:
            last = self._gateway.draining
            status = self._status(request.service)
            if status != known:
                known = status
                yield Status(status=status)
            if last:
                return
            await asyncio.sleep(LOOK_SECONDS)

    def _status(self, name: str) -> health_pb2.HealthCheckResponse.ServingStatus:
        if name in WHOLE:
            return Status.SERVING if self._gateway.ready else Status.NOT_SERVING
        try:
            ready = self._gateway.answers(name) and not self._gateway.draining
        except NotFound:
            return Status.SERVICE_UNKNOWN
        except Unavailable:
            return Status.NOT_SERVING
        return Status.SERVING if ready else Status.NOT_SERVING
