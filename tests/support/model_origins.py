"""Servers on this machine that models are pulled from, well or badly: a web server, one that speaks
the language of the Hugging Face hub, and an OCI registry.
"""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple, Self
from urllib.parse import parse_qs, quote, unquote, urlsplit


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Asked(NamedTuple):
    path: str
    range: str | None
    authorization: str | None


class Answer(NamedTuple):
    status: int
    body: bytes = b""
    headers: Mapping[str, str] = MappingProxyType({})


class Origin(http.server.ThreadingHTTPServer):
    """A web server of `files`, by their paths, in a `with` block.

    `cuts`: after how many bytes the connection ends, for each of the next requests of a path.
    `seen`: what was asked. `ranges`, `sizes`: whether it sends parts, and says how long they are.
    `half`: called in the middle of every file's body.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.headers: dict[str, str] = {}
        self.cuts: dict[str, list[int]] = defaultdict(list)
        self.seen: list[Asked] = []
        self.ranges = self.sizes = True
        self.half: Callable[[str], None] = lambda path: None
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """A connection that a test has cut, or that a killed client has left."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def asked(self, path: str) -> list[Asked]:
        return [each for each in self.seen if each.path == path]

    def answer(self, asked: Asked, query: dict[str, list[str]], host: str) -> Answer:
        """To anything but a file; a file's body is sent in parts where a part is asked for."""
        path = asked.path
        if path in self.files:
            return Answer(200, self.files[path], {"ETag": f'"{sha256(self.files[path])}"'})
        names = [name for name in self.files if name.startswith(path.rstrip("/") + "/")]
        if not names:
            return Answer(404)
        if not path.endswith("/"):
            return Answer(301, b"", {"Location": quote(path) + "/"})
        links = sorted({_first(name[len(path) :]) for name in names})
        page = '<a href="?C=N;O=D">Name</a><a href="../">up</a>'
        page += "".join(f'<a href="{quote(link)}">{link}</a>' for link in links)
        return Answer(200, page.encode(), {"Content-Type": "text/html"})


def _first(path: str) -> str:
    top, slash, _ = path.partition("/")
    return top + slash


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Origin

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        parts = urlsplit(self.path)
        asked = Asked(
            unquote(parts.path), self.headers.get("Range"), self.headers.get("Authorization")
        )
        self.server.seen.append(asked)
        found = self.server.answer(asked, parse_qs(parts.query), self.headers["Host"])
        status, body, headers = found
        tag = headers.get("ETag")
        same = self.headers.get("If-Range") in (None, tag)
        if status == 200 and asked.range and self.server.ranges and same:
            status, body, headers = _part(body, asked.range, headers)
        self.send_response(status)
        for name, value in ({**headers, **self.server.headers}).items():
            self.send_header(name, value)
        if self.server.sizes:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self._send(asked.path, body, is_file=bool(tag))

    def _send(self, path: str, body: bytes, *, is_file: bool) -> None:
        cuts = self.server.cuts[path]
        if cuts and is_file:
            self.wfile.write(body[: cuts.pop(0)])
            self.wfile.flush()
            self.connection.close()
            return
        middle = len(body) // 2
        self.wfile.write(body[:middle])
        self.wfile.flush()
        if is_file:
            self.server.half(path)
        self.wfile.write(body[middle:])

    def log_message(self, *_: object) -> None:
        pass


def _part(body: bytes, wanted: str, headers: Mapping[str, str]) -> Answer:
    first = int(wanted.removeprefix("bytes=").rstrip("-"))
    if first >= len(body):
        return Answer(416, b"", {"Content-Range": f"bytes */{len(body)}"})
    said = {"Content-Range": f"bytes {first}-{len(body) - 1}/{len(body)}"}
    return Answer(206, body[first:], {**headers, **said})


class Hub(Origin):
    """One model, `org/tiny`, whose large files are on another host. `token`: who may read it."""

    COMMIT = "c0ffee" + 34 * "0"

    def __init__(self, contents: dict[str, bytes], large: set[str]) -> None:
        super().__init__()
        self.contents, self.large = contents, large
        self.stated = dict(contents)
        self.token = ""
        self.gated = False

    def resolved(self, name: str) -> str:
        """The path that a file is read from in the end."""
        return f"/cdn/{name}" if name in self.large else f"/org/tiny/resolve/{self.COMMIT}/{name}"

    def answer(self, asked: Asked, query: dict[str, list[str]], host: str) -> Answer:
        path = asked.path
        if path.startswith("/cdn/"):
            return self._file(path.removeprefix("/cdn/"))
        if self.token and asked.authorization != f"Bearer {self.token}":
            code = "GatedRepo" if self.gated else "RepoNotFound"
            return Answer(403 if self.gated else 401, b"", {"X-Error-Code": code})
        if path.startswith("/api/models/org/tiny/revision/"):
            return self._info(path.rpartition("/")[2])
        name = path.removeprefix(f"/org/tiny/resolve/{self.COMMIT}/")
        if name not in self.contents:
            return Answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        if name in self.large:
            there = f"http://localhost:{self.server_port}/cdn/{quote(name)}"
            return Answer(302, b"", {"Location": there})
        return self._file(name)

    def _file(self, name: str) -> Answer:
        data = self.contents[name]
        return Answer(200, data, {"ETag": f'"{sha256(data)}"', "X-Repo-Commit": self.COMMIT})

    def _info(self, revision: str) -> Answer:
        if revision not in ("main", self.COMMIT):
            return Answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        siblings = [self._sibling(name) for name in self.contents]
        info = {"id": "org/tiny", "sha": self.COMMIT, "siblings": siblings}
        return Answer(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

    def _sibling(self, name: str) -> dict[str, object]:
        data = self.stated[name]
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        found: dict[str, object] = {"rfilename": name, "size": len(data), "blobId": blob}
        if name in self.large:
            found["lfs"] = {"sha256": sha256(data), "size": len(data), "pointerSize": 130}
        return found


class Registry(Origin):
    """An OCI registry that wants a token, which takes a password where there is one."""

    def __init__(self) -> None:
        super().__init__()
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, bytes] = {}
        self.login = ""

    def push(self, tag: str, layers: list[tuple[bytes, dict[str, object]]]) -> str:
        """A manifest of layers and what is said of each; its digest."""
        said = []
        for data, about in layers:
            digest = f"sha256:{sha256(data)}"
            self.blobs[digest] = data
            said.append({"digest": digest, "size": len(data), **about})
        return self.put(tag, {"schemaVersion": 2, "layers": said})

    def put(self, tag: str, manifest: dict[str, object]) -> str:
        data = json.dumps(manifest).encode()
        digest = f"sha256:{sha256(data)}"
        self.manifests[tag] = self.manifests[digest] = data
        return digest

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    def answer(self, asked: Asked, query: dict[str, list[str]], host: str) -> Answer:
        if asked.path == "/token":
            return self._token(asked, query)
        if asked.authorization != "Bearer of-the-test":
            challenge = f'Bearer realm="{self.url}/token",service="test",scope="repository:a:pull"'
            return Answer(401, b"", {"WWW-Authenticate": challenge})
        _, kind, name = asked.path.rsplit("/", 2)
        if kind == "manifests" and name in self.manifests:
            return Answer(200, self.manifests[name], {"Content-Type": "application/json"})
        if kind == "blobs" and name in self.blobs:
            return Answer(200, self.blobs[name], {"ETag": f'"{name}"'})
        return Answer(404)

    def _token(self, asked: Asked, query: dict[str, list[str]]) -> Answer:
        assert query["service"] == ["test"]
        wanted = "Basic " + base64.b64encode(self.login.encode()).decode()
        if self.login and asked.authorization != wanted:
            return Answer(401)
        return Answer(200, b'{"token": "of-the-test"}')


def serving(origin: Origin) -> Iterator[Origin]:
    """For fixtures."""
    with origin:
        yield origin
