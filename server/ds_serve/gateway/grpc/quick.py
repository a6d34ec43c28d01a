"""The quick way of ModelInfer: from pygrpc-native's events to the gateway and back.

pygrpc-native does HTTP/2 and gRPC's framing in Rust threads and hands over batches of calls. Its
asyncio server makes a task and a context for each; a unary inference needs neither. All other
methods take that server's own way.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import pygrpc_native.aio
from google.protobuf.message import DecodeError
from pygrpc_native import EVENT_CANCEL

from ds_engines.errors import EngineFailure, InvalidRequest, ServeError, TooLarge
from ds_proto import grpc_service_pb2 as pb
from ds_proto.service import SERVICE
from ds_serve import metrics
from ds_serve.gateway.grpc import codec
from ds_serve.gateway.grpc.errors import refusal
from ds_serve.gateway.grpc.service import InferenceService
from ds_serve.gateway.http.request_ids import HEADER, RequestIds
from ds_serve.gateway.requests import Abandon
from ds_serve.security.rpc import let_in
from ds_serve.spans import parent_in

log = logging.getLogger(__name__)

METHOD = "ModelInfer"
PATH = f"/{SERVICE}/{METHOD}"
ID = HEADER.decode()

Metadata = Sequence[tuple[str, str | bytes]]


class QuickServer(pygrpc_native.aio.Server):
    """pygrpc-native's server, in which ModelInfer is answered by callbacks."""

    def __init__(
        self, service: InferenceService, ids: RequestIds, options: Sequence[tuple[str, Any]]
    ) -> None:
        # One thread: it carries many times what the interpreter can answer, and hands on quicker.
        super().__init__(options=options, io_threads=1)
        self._service = service
        self._ids = ids
        self._succeeded = metrics.Tally(metrics.gateway_responses.labels("grpc", "OK").inc)
        self._running: dict[int, Abandon] = {}
        self._idle = asyncio.Event()

    async def stop(self, grace: float | None) -> None:
        """As grpc.aio's: no new calls, and `grace` seconds for those that run."""
        if self._running and grace:
            self._stopping = True  # new calls are refused from now on
            self._idle.clear()
            try:
                await asyncio.wait_for(self._idle.wait(), grace)
            except TimeoutError:
                grace = None
            self._stopping = False
        await super().stop(grace)

    def _on_events(self, events: list[tuple[Any, ...]]) -> None:
        others = []
        for event in events:
            kind, call_id, method, payload, _, details = event
            if kind == EVENT_CANCEL:
                abandon = self._running.pop(call_id, None)
                if abandon is None:
                    others.append(event)
                else:
                    abandon()
                    self._check_idle()
            elif self._table[method][0] == PATH and self._takes(payload):
                self._begin(call_id, payload, *details)
            else:
                others.append(event)
        if others:
            super()._on_events(others)

    def _request(self, call: Any, payload: bytes) -> tuple[bool, Any]:
        """The message of a call that goes the server's own way; what is too large is told in our
        words.
        """
        limit = self._receive_limit
        if limit is None or len(payload) <= limit:
            return super()._request(call, payload)
        error = TooLarge(
            f"the request has {len(payload):,} bytes; the limit is {limit:,} (--max-request-bytes)"
        )
        self._refuse(call.call_id, given_id(call.metadata), error, call.method.rpartition("/")[2])
        return False, None

    def _takes(self, payload: bytes) -> bool:
        """Whether the call is neither too large nor too late."""
        limit = self._receive_limit
        return not self._stopping and (limit is None or len(payload) <= limit)

    def _begin(
        self, call_id: int, payload: bytes, metadata: Metadata, peer: str, seconds: float | None
    ) -> None:
        given = given_id(metadata)
        try:
            request, raw = codec.read(payload)
            answer = partial(self._answer, call_id, given)
            caller = let_in(self._service.guard, METHOD, request, metadata)
            parent = parent_in(metadata) if self._service.gateway.tracer.on else ""
            begin = self._service.begin
            self._running[call_id] = begin(request, seconds, answer, raw, parent, caller)
        except DecodeError:
            name = pb.ModelInferRequest.DESCRIPTOR.full_name
            self._refuse(call_id, given, InvalidRequest(f"the request's bytes are no {name}"))
        except ServeError as error:
            self._refuse(call_id, given, error)
        except Exception:
            log.exception("the gateway failed on %s", METHOD)
            failure = EngineFailure("the server failed; its log says why")
            self._refuse(call_id, given, failure)

    def _answer(
        self, call_id: int, given: bytes | None, outcome: pb.ModelInferResponse | ServeError
    ) -> None:
        if self._running.pop(call_id, None) is None:
            return
        if isinstance(outcome, ServeError):
            self._refuse(call_id, given, outcome)
        else:
            trailers = None if given is None else [(ID, self._ids.of(given).decode())]
            assert self._front is not None, "a call came from it"
            self._front.respond(call_id, outcome.SerializeToString(), trailing_metadata=trailers)
            self._succeeded.add(1)
        self._check_idle()

    def _refuse(
        self, call_id: int, given: bytes | None, error: ServeError, method: str = METHOD
    ) -> None:
        code, message, trailers = refusal(method, self._ids.of(given), error)
        assert self._front is not None, "a call came from it"
        self._front.fail(call_id, code.value[0], message, trailing_metadata=trailers)

    def _check_idle(self) -> None:
        if not self._running:
            self._idle.set()


def given_id(metadata: Iterable[tuple[str, str | bytes]]) -> bytes | None:
    """The client's name for its request."""
    for name, value in metadata:
        if name == ID:
            return value.encode() if isinstance(value, str) else value
    return None
