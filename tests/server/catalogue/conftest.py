"""A wheel made here, and a server on this machine that hands it out, well or badly."""

from __future__ import annotations

import hashlib
import http.server
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ds_serve.catalogue import Entry, File

PACKAGE = "ds-serve-made-model"
MODEL = b"model bytes " * 50_000
LABELS = b'["cat", "dog"]'


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def make_wheel(folder: Path, model: bytes = MODEL) -> Path:
    """A wheel of PACKAGE 1.0 that holds `model` and its labels."""
    stem = f"{PACKAGE.replace('-', '_')}-1.0"
    info = f"{stem}.dist-info"
    folder.mkdir(exist_ok=True, parents=True)
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("made/model.onnx", model)
        archive.writestr("made/labels.json", LABELS)
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


def entry_of(wheel: Path) -> Entry:
    data = wheel.read_bytes()
    return Entry(
        name="made",
        description="made by the test",
        licence="Apache-2.0",
        task="tensor",
        engine="onnxruntime",
        package=PACKAGE,
        version="1.0",
        size=len(data),
        sha256=sha256(data),
        files=(
            File("made/model.onnx", len(MODEL), sha256(MODEL)),
            File("made/labels.json", len(LABELS), sha256(LABELS)),
        ),
    )


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    return make_wheel(tmp_path / "index")


@pytest.fixture
def entry(wheel: Path) -> Entry:
    return entry_of(wheel)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def local(wheel: Path) -> tuple[str, ...]:
    """pip options that make the folder of the wheel the only index."""
    return ("--no-index", f"--find-links={wheel.parent}")


@pytest.fixture
def nowhere(tmp_path: Path) -> tuple[str, ...]:
    """pip options that leave nowhere to download from."""
    (tmp_path / "empty").mkdir()
    return ("--no-index", f"--find-links={tmp_path / 'empty'}")


class Registry(http.server.ThreadingHTTPServer):
    """Serves one wheel; `half` is called with each download once half of it is sent."""

    daemon_threads = True

    def __init__(self, wheel: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.wheel = wheel
        self.half: Callable[[], None] = lambda: None
        self.ranges: list[str | None] = []

    @property
    def options(self) -> tuple[str, ...]:
        return ("--no-index", f"--find-links=http://127.0.0.1:{self.server_port}/")


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Registry

    def do_GET(self) -> None:
        if not self.path.endswith(".whl"):
            name = self.server.wheel.name
            self._answer(200, "text/html", f'<a href="/{name}">{name}</a>'.encode())
            return
        wanted = self.headers.get("Range")
        self.server.ranges.append(wanted)
        first = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        data = self.server.wheel.read_bytes()
        self._answer(206 if wanted else 200, "application/zip", data[first:], first, len(data))

    def _answer(
        self, status: int, content_type: str, body: bytes, first: int = 0, whole: int = 0
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"one"')
        self.send_header("Accept-Ranges", "bytes")
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{whole - 1}/{whole}")
        self.end_headers()
        middle = len(body) // 2
        self.wfile.write(body[:middle])
        self.wfile.flush()
        if whole:
            self.server.half()
        self.wfile.write(body[middle:])

    def log_message(self, *_: object) -> None:
        pass


class _Dropped(Registry):
    def handle_error(self, request: object, client_address: object) -> None:
        """A connection that the test cut, or that a killed client left."""


@pytest.fixture
def registry(wheel: Path) -> Iterator[Registry]:
    with _Dropped(wheel) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
