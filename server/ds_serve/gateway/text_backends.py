"""Makes the backend of a text model: which way its requests go, and what tensors it has."""

from __future__ import annotations

from ds_serve.gateway.config import Limits
from ds_serve.gateway.text import TextBackend
from ds_serve.gateway.text_encoder import EncoderBackend
from ds_serve.gateway.text_upstream import UpstreamWay
from ds_serve.gateway.text_way import WorkerWay
from ds_serve.security.text_ledger import TextLedger
from ds_serve.transport.messages import ModelState

ENCODER = "encoder"


def text_backend(state: ModelState, limits: Limits, ledger: TextLedger) -> TextBackend:
    """The backend for what the supervisor says of a text model that is ready."""
    spec, upstream = state.spec, state.upstream
    assert spec is not None, "it is ready"
    seat = ledger.seat(spec.name)
    if upstream is not None:
        return TextBackend(spec, UpstreamWay(spec.name, upstream, seat=seat, limits=limits))
    workers = state.replicas or (state.address,)
    way = WorkerWay(spec.name, spec.engine, workers, seat=seat, limits=limits)
    return EncoderBackend(spec, way) if spec.engine == ENCODER else TextBackend(spec, way)
