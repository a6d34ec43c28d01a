"""The infer route, on raw ASGI: the one path where every microsecond counts."""

from __future__ import annotations

import asyncio
import logging
import re

from ds_engines.errors import Cancelled, EngineFailure, ServeError
from ds_serve import metrics
from ds_serve.gateway.budget import Budget
from ds_serve.gateway.gateway import Gateway
from ds_serve.gateway.http import errors, kserve_codec
from ds_serve.gateway.http.answer import Answer, Receive, Scope, Send, Watch, read_body
from ds_serve.gateway.http.request_ids import HEADER, RequestIds

log = logging.getLogger(__name__)

PATH = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer")


class InferRoute:
    """POST /v2/models/{model}[/versions/{version}]/infer."""

    def __init__(self, gateway: Gateway, budget: Budget, ids: RequestIds) -> None:
        self._gateway = gateway
        self._budget = budget
        self._ids = ids
        self._succeeded = metrics.gateway_responses.labels("http", "200")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        request_id = self._ids.of(headers.get(HEADER))
        try:
            answer = await self._answer(scope["path"], headers, receive)
        except Cancelled:
            log.debug("cancelled", extra={"fields": {"request_id": request_id.decode()}})
            return
        except ServeError as error:
            answer = self._refused(scope["path"], request_id, error)
        else:
            self._succeeded.inc()
        extra = [(HEADER, request_id)]
        if self._gateway.draining:
            extra.append((b"connection", b"close"))
        await answer.send(send, extra)

    async def _answer(self, path: str, headers: dict[bytes, bytes], receive: Receive) -> Answer:
        match = PATH.fullmatch(path)
        assert match is not None, "the application has matched the path"
        body = await read_body(headers, receive, self._budget)
        watch = Watch(receive)
        try:
            request, wanted = kserve_codec.decode(
                match[1], match[2] or "", headers, body, self._gateway.seconds(match[1])
            )
            reply = await self._gateway.infer(request)
            return kserve_codec.encode(reply, wanted)
        except asyncio.CancelledError:
            if watch.gone:
                raise Cancelled("the client left") from None
            raise
        except ServeError:
            raise
        except Exception as error:
            log.exception("the gateway failed on %s", path)
            raise EngineFailure("the server failed on this request; its log says why") from error
        finally:
            watch.stop()
            self._budget.give(len(body))

    def _refused(self, path: str, request_id: bytes, error: ServeError) -> Answer:
        answer = errors.kserve(error)
        metrics.gateway_responses.labels("http", str(answer.status)).inc()
        level = logging.WARNING if answer.status >= 500 else logging.INFO
        fields = {"request_id": request_id.decode(), "path": path, "status": answer.status}
        log.log(level, "refused: %s", error, extra={"fields": fields})
        return answer
