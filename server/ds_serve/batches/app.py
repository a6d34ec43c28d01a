"""OpenAI's routes for files and batches. The gateways say whose request it is."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import msgspec
from aiohttp import BodyPartReader, web

from ds_engines.errors import InvalidRequest, ServeError, TooLarge
from ds_serve.batches.runner import Runner
from ds_serve.batches.store import Batch, File, Store, new_id, now
from ds_serve.gateway.http import errors
from ds_serve.gateway.text_body import UNVERSIONED

OWNER = "x-ds-key"
"""The header with the name of the caller's key, percent-encoded."""

WINDOW = re.compile(r"([1-9]\d{0,2})([hd])")
PURPOSES = frozenset({"batch", "assistants", "fine-tune", "vision", "user_data", "evals"})
SHORTEST, LONGEST = 3600, 30 * 86_400
"""Seconds after which a file may be told to expire."""

MOST_METADATA = 16
FIELD_BYTES = 4096

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class _Wanted(msgspec.Struct, forbid_unknown_fields=True):
    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None = None
    output_expires_after: dict[str, Any] | None = None


class Files:
    """The files' half."""

    def __init__(self, store: Store, most: int) -> None:
        self._store = store
        self._most = most

    async def create(self, request: web.Request) -> web.Response:
        """A form with `purpose`, `file` and perhaps `expires_after[seconds]`, in any order."""
        owner, id = _owner(request), new_id("file-")
        path = self._store.data(id)
        fields: dict[str, str] = {}
        name: str | None = None
        try:
            reader = await request.multipart()
        except (ValueError, AssertionError) as error:
            raise InvalidRequest(f"a file is sent as multipart/form-data: {error}") from None
        try:
            while (part := await reader.next()) is not None:
                if not isinstance(part, BodyPartReader):
                    raise InvalidRequest("the form holds another form")
                if part.name == "file":
                    name = part.filename or "file"
                    await self._receive(part, path, owner)
                else:
                    field = await part.read_chunk(FIELD_BYTES)
                    fields[str(part.name)] = field.decode(errors="replace")
            file = self._made(id, owner, name, fields)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        self._store.keep(file)
        return web.json_response(file.shown())

    def _made(self, id: str, owner: str, name: str | None, fields: Mapping[str, str]) -> File:
        if name is None:
            raise InvalidRequest("the form must have a part 'file'")
        purpose = fields.get("purpose", "")
        if purpose not in PURPOSES:
            raise InvalidRequest(
                f"purpose is {purpose!r}; it must be one of {', '.join(sorted(PURPOSES))}"
            )
        size = self._store.data(id).stat().st_size
        return File(
            id=id,
            owner=owner,
            filename=Path(name).name,
            purpose=purpose,
            bytes=size,
            created_at=now(),
            expires_at=_expiry(fields),
        )

    async def _receive(self, part: BodyPartReader, path: Path, owner: str) -> None:
        size = 0
        with path.open("wb") as file:
            while chunk := await part.read_chunk(256 * 1024):
                size += len(chunk)
                if size > self._most:
                    raise TooLarge(f"a file has {self._most:,} bytes at most")
                self._store.check_room(owner, size)
                file.write(chunk)

    async def list(self, request: web.Request) -> web.Response:
        owner, purpose = _owner(request), request.query.get("purpose", "")
        found = [
            one
            for one in self._store.files.values()
            if one.owner == owner and purpose in ("", one.purpose)
        ]
        return web.json_response(_page(found, request.query, 10_000))

    async def retrieve(self, request: web.Request) -> web.Response:
        return web.json_response(self._file(request).shown())

    async def content(self, request: web.Request) -> web.FileResponse:
        file = self._file(request)
        headers = {"content-type": "application/octet-stream"}
        return web.FileResponse(self._store.data(file.id), headers=headers)

    async def delete(self, request: web.Request) -> web.Response:
        file = self._file(request)
        for batch in self._store.batches.values():
            if batch.input_file_id == file.id and not batch.ended:
                raise InvalidRequest(f"file {file.id!r} is being read by batch {batch.id!r}")
        self._store.delete(file)
        return web.json_response({"id": file.id, "object": "file", "deleted": True})

    def _file(self, request: web.Request) -> File:
        return self._store.file(request.match_info["id"], _owner(request))


class Batches:
    """The batches' half."""

    def __init__(self, store: Store, runner: Runner) -> None:
        self._store = store
        self._runner = runner

    async def create(self, request: web.Request) -> web.Response:
        owner = _owner(request)
        try:
            wanted = msgspec.json.decode(await request.read(), type=_Wanted)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidRequest(f"a batch: {error}") from None
        _check(wanted)
        file = self._store.file(wanted.input_file_id, owner)
        if file.purpose != "batch":
            raise InvalidRequest(f"file {file.id!r} has the purpose {file.purpose!r}, not 'batch'")
        batch = Batch(
            id=new_id("batch_"),
            owner=owner,
            endpoint=wanted.endpoint,
            input_file_id=file.id,
            completion_window=wanted.completion_window,
            created_at=now(),
            expires_at=now() + _window(wanted.completion_window),
            metadata=wanted.metadata,
        )
        self._store.keep(batch)
        self._runner.begin(batch)
        return web.json_response(batch.shown())

    async def list(self, request: web.Request) -> web.Response:
        owner = _owner(request)
        found = [one for one in self._store.batches.values() if one.owner == owner]
        return web.json_response(_page(found, request.query, 100, 20))

    async def retrieve(self, request: web.Request) -> web.Response:
        return web.json_response(self._batch(request).shown())

    async def cancel(self, request: web.Request) -> web.Response:
        batch = self._batch(request)
        if batch.ended or batch.status == "finalizing":
            raise InvalidRequest(f"batch {batch.id!r} is {batch.status} already")
        if batch.status != "cancelling":
            self._runner.cancel(batch)
        return web.json_response(batch.shown())

    def _batch(self, request: web.Request) -> Batch:
        return self._store.batch(request.match_info["id"], _owner(request))


def build(store: Store, runner: Runner, most: int) -> web.Application:
    """`most`: bytes of a file."""
    files, batches = Files(store, most), Batches(store, runner)
    app = web.Application(middlewares=[_refuse], client_max_size=1 << 20)
    app.add_routes(
        [
            web.post("/v1/files", files.create),
            web.get("/v1/files", files.list),
            web.get("/v1/files/{id}", files.retrieve),
            web.get("/v1/files/{id}/content", files.content),
            web.delete("/v1/files/{id}", files.delete),
            web.post("/v1/batches", batches.create),
            web.get("/v1/batches", batches.list),
            web.get("/v1/batches/{id}", batches.retrieve),
            web.post("/v1/batches/{id}/cancel", batches.cancel),
        ]
    )
    return app


@web.middleware
async def _refuse(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Errors in OpenAI's shape."""
    try:
        return await handler(request)
    except ServeError as error:
        return web.json_response(errors.openai_body(error), status=errors.STATUS[error.kind])
    except web.HTTPException as error:
        said = InvalidRequest(f"{request.method} {request.path}: {error.reason}")
        return web.json_response(errors.openai_body(said), status=error.status)


def _owner(request: web.Request) -> str:
    return unquote(request.headers.get(OWNER, ""))


def _check(wanted: _Wanted) -> None:
    endpoint = wanted.endpoint
    own = endpoint.startswith(("/v1/files", "/v1/batches"))
    if own or not (endpoint.startswith("/v1/") or endpoint in UNVERSIONED):
        raise InvalidRequest(
            f"endpoint is {endpoint!r}; it must be a model's path, such as /v1/chat/completions"
        )
    if WINDOW.fullmatch(wanted.completion_window) is None:
        raise InvalidRequest(
            f"completion_window is {wanted.completion_window!r}; it must be such as 24h or 7d"
        )
    if len(wanted.metadata or {}) > MOST_METADATA:
        raise InvalidRequest(f"metadata has more than {MOST_METADATA} entries")


def _window(said: str) -> int:
    match = WINDOW.fullmatch(said)
    assert match is not None, "it was checked"
    return int(match[1]) * {"h": 3600, "d": 86_400}[match[2]]


def _expiry(fields: Mapping[str, str]) -> int | None:
    said = fields.get("expires_after[seconds]")
    if said is None:
        return None
    if not said.isdecimal() or not SHORTEST <= int(said) <= LONGEST:
        raise InvalidRequest(
            f"expires_after[seconds] is {said!r:.40}; it must be {SHORTEST} to {LONGEST}"
        )
    return now() + int(said)


def _page(
    records: list[Any], query: Mapping[str, str], most: int, usual: int | None = None
) -> dict[str, Any]:
    """The newest first, `limit` of them, those that come after the one called `after`."""
    said = query.get("limit", str(usual or most))
    if not said.isdecimal() or not 1 <= int(said) <= most:
        raise InvalidRequest(f"limit is {said!r:.40}; it must be 1 to {most}")
    ordered = sorted(records, key=lambda one: one.id, reverse=query.get("order") != "asc")
    ids = [one.id for one in ordered]
    after = query.get("after", "")
    begin = ids.index(after) + 1 if after in ids else 0
    shown = ordered[begin : begin + int(said)]
    return {
        "object": "list",
        "data": [one.shown() for one in shown],
        "first_id": shown[0].id if shown else None,
        "last_id": shown[-1].id if shown else None,
        "has_more": begin + int(said) < len(ordered),
    }
