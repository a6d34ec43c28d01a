"""/v1/files and /v1/batches: passed on to the process that owns them, whatever their size."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

from ds_engines.errors import ServeError, Unsupported
from ds_serve.gateway.budget import Budget
from ds_serve.gateway.gateway import Gateway
from ds_serve.gateway.http import errors
from ds_serve.gateway.http.answer import Answer, Receive, Scope
from ds_serve.gateway.http.body import check_announced, pieces
from ds_serve.gateway.http.frame import Out, Route
from ds_serve.gateway.http.openai import PASSED_BACK, target_of
from ds_serve.gateway.http.request_ids import RequestIds
from ds_serve.gateway.text_hop import Hop
from ds_serve.security.asgi import caller_of

PATH = re.compile(r"/v1/(?:files|batches)(?:/.*)?")
SOCKET = "batches.sock"
"""In the run folder: where the process listens that owns the files."""


class FilesRoute(Route):
    """`folder`: the run folder; None where the server keeps no files."""

    def __init__(
        self, gateway: Gateway, budget: Budget, ids: RequestIds, folder: Path | None
    ) -> None:
        super().__init__(gateway, budget, ids)
        lost = "the process that keeps files and batches went away"
        self._hop = None if folder is None else Hop(str(folder / SOCKET), lost)

    async def run(
        self, scope: Scope, headers: dict[bytes, bytes], receive: Receive, out: Out
    ) -> None:
        if self._hop is None:
            raise Unsupported(f"{scope['path']} needs a folder for files: start it with --files")
        check_announced(headers, self._budget)
        passed = {"x-ds-key": quote(caller_of(scope).name)}
        if b"content-type" in headers:
            passed["content-type"] = headers[b"content-type"].decode("latin-1")
        body = self._body(headers, receive) if scope["method"] == "POST" else b""
        async with self._hop.exchange(scope["method"], target_of(scope), body, passed) as reply:
            shown = [
                (name.encode(), reply.headers[name].encode("latin-1"))
                for name in PASSED_BACK
                if name in reply.headers
            ]
            await reply.first()
            await out.start(reply.status, shown)
            async for piece in reply.pieces():
                await out.write(piece)
            await out.end()

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> AsyncIterator[bytes]:
        size = 0
        async for piece in pieces(headers, receive):
            size += len(piece)
            self._budget.check(size)
            if piece:
                yield piece

    def refusal(self, error: ServeError) -> Answer:
        return errors.openai(error)
