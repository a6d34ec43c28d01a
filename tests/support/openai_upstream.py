"""A small OpenAI-compatible server, as another machine would have it."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any, Self

import orjson
from aiohttp import web


class OpenAIUpstream:
    """Serves in a thread, on a Unix socket or a free port, in a `with` block.

    `seen`: what it was asked: method, path, headers in small letters, and the body. `failures`:
    statuses that it answers with next, each once; 0 breaks the connection off. `retry_after` goes
    with them; neither is about metrics and the list of models. `seconds`: how long
    an answer takes; while `paused` none is given.
    """

    def __init__(self, socket: Path | None = None) -> None:
        self.socket = socket
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        self.failures: list[int] = []
        self.retry_after = ""
        self.seconds = 0.0
        self.paused = False
        self.adapters: list[str] = []
        self.running = self.most = 0
        self.metrics = ""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _start(self) -> None:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        if self.socket is not None:
            await web.UnixSite(self._runner, str(self.socket)).start()
            self.address = f"unix:{self.socket}"
            return
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.address = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"

    @property
    def bodies(self) -> list[dict[str, Any]]:
        """Of all JSON requests."""
        return [orjson.loads(body) for *_, body in self.seen if body.startswith(b"{")]

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        if request.path == "/metrics":
            return web.Response(text=self.metrics)
        if request.path == "/v1/models":  # which others look at, to see whether it is there
            return await self._do(request, body)
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.seen.append((request.method, request.path_qs, headers, body))
        if self.failures:
            return self._fail(request, self.failures.pop(0))
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(self.seconds)
            while self.paused:
                await asyncio.sleep(0.01)
            return await self._do(request, body)
        finally:
            self.running -= 1

    def _fail(self, request: web.Request, status: int) -> web.Response:
        if not status:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        headers = {"retry-after": self.retry_after} if self.retry_after else {}
        error = {"message": f"failed with {status}", "type": "x", "param": None, "code": None}
        return web.json_response({"error": error}, status=status, headers=headers)

    async def _do(self, request: web.Request, body: bytes) -> web.StreamResponse:
        path = request.path
        if path == "/v1/models":
            base = {"id": "base", "object": "model", "max_model_len": 4096}
            adapters = [{"id": name, "object": "model", "parent": "base"} for name in self.adapters]
            return web.json_response({"object": "list", "data": [base, *adapters]})
        if request.method in ("GET", "DELETE"):
            known = path.startswith("/v1/responses/resp_1")
            return web.json_response({"id": "resp_1"}, status=200 if known else 404)
        asked = orjson.loads(body) if body.startswith(b"{") else {}
        if path.endswith("lora_adapter"):
            name = asked["lora_name"]
            self.adapters = [name] if "/load" in path else []
            return web.Response(text="done")
        if asked.get("stream"):
            return await self._stream(request, asked)
        text = asked.get("prompt") or asked.get("messages", [{"content": ""}])[-1]["content"]
        choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": text}}
        choice |= {"finish_reason": "stop", "text": text}
        answer = {"id": "1", "object": "chat.completion", "created": 1, "path": path}
        answer |= {"model": asked.get("model", ""), "choices": [choice], "text": "heard"}
        return web.json_response(answer)

    async def _stream(self, request: web.Request, asked: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for word in ("one", "two", "three"):
            delta = {"index": 0, "delta": {"content": word}, "finish_reason": None}
            chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1}
            chunk |= {"model": asked["model"], "choices": [delta]}
            await response.write(b"data: " + orjson.dumps(chunk) + b"\n\n")
            if "break" in asked.get("user", ""):
                assert request.transport is not None
                request.transport.abort()
        await response.write(b"data: [DONE]\n\n")
        return response
