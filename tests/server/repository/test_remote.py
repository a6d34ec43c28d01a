"""Repositories at addresses, on fsspec's file system in memory and on a web server."""

from __future__ import annotations

import functools
import http.server
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from ds_engines.errors import ConfigError, LoadError
from ds_serve.repository.library import Library
from ds_serve.repository.remote import KEPT, Remote

# ModelProto: ir_version 8; graph, a message of 2 bytes that names it "g"... and no more.
ONNX = b"\x08\x08" + b"\x3a\x03\x12\x01g" + b"\x42\x02\x10\x0d"
URL = "memory://models"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DS_SERVE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    files = fsspec.filesystem("memory", skip_instance_cache=True)
    yield files
    files.rm("/models", recursive=True)


@pytest.fixture
def put(memory: fsspec.AbstractFileSystem):
    def put(path: str, data: bytes = ONNX) -> None:
        time.sleep(0.001)  # a later time of change
        memory.pipe_file(f"/models/{path}", data)

    return put


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_it_is_read_as_one_on_this_machine_is(put) -> None:
    put("m/1/model.onnx")
    put("m/2/model.onnx")
    put("m/config.pbtxt", b"version_policy { all {} }")
    put("n/3/net.onnx")
    put(".hidden/1/model.onnx")
    put("README.md", b"")
    library = Library([], [URL])
    assert library.names() == ["m", "n"]
    assert [source.version for source in library.read("m")] == ["1", "2"]
    (source,) = library.read("n")
    assert (source.version, source.artifact.name) == ("3", "net.onnx")
    assert source.artifact.read_bytes() == ONNX


def test_only_what_is_needed_is_fetched_and_only_once(put, capfd, cache: Path) -> None:
    for version in ("1", "2", "10"):
        put(f"m/{version}/model.onnx")
    put("m/warmup/row", b"0123")
    first = Remote(URL, cache, threading.Lock()).folder("m")
    assert names(first) - {".manifest.json"} == {"10/model.onnx", "warmup/row"}
    assert "fetching 2 files" in capfd.readouterr().err
    again = Remote(URL, cache, threading.Lock())
    assert again.folder("m") == first
    put("m/11/model.onnx")
    second = again.folder("m")
    assert names(second) - {".manifest.json"} == {"11/model.onnx", "warmup/row"}
    assert "fetching 1 files" in capfd.readouterr().err
    assert names(first) - {".manifest.json"} == {"10/model.onnx", "warmup/row"}, "still served"
    assert (first / "warmup/row").samefile(second / "warmup/row")


def test_another_configuration_may_choose_other_versions(put, cache: Path, tmp_path: Path) -> None:
    put("m/1/model.onnx")
    put("m/2/model.onnx")
    config = tmp_path / "config.pbtxt"
    config.write_text("version_policy { specific { versions: 1 } }")
    assert [source.version for source in Library([], [URL]).read("m", config)] == ["1"]


def test_changes_are_told(put, cache: Path) -> None:
    put("m/1/model.onnx")
    remote = Remote(URL, cache, threading.Lock())
    before = remote.fingerprint("m")
    assert remote.fingerprint("m") == before
    put("m/1/model.onnx", ONNX + b"\x08\x08")
    assert remote.fingerprint("m") != before
    after = remote.fingerprint("m")
    put("m/2/model.onnx")
    assert {key for key, value in remote.fingerprint("m").items() if after.get(key) != value} == {
        "2"
    }


def test_old_snapshots_go(put, cache: Path) -> None:
    remote = Remote(URL, cache, threading.Lock())
    for version in range(1, KEPT + 4):
        put(f"m/{version}/model.onnx")
        newest = remote.folder("m")
    left = [path for path in newest.parent.iterdir() if path.is_dir()]
    assert len(left) == KEPT
    assert newest in left


def test_a_download_that_breaks_off_leaves_nothing(put, cache: Path, monkeypatch) -> None:
    put("m/1/model.onnx")
    remote = Remote(URL, cache, threading.Lock())

    def broken(path: str, target: Path) -> Iterator[int]:
        target.write_bytes(b"half")
        yield 4
        raise ConnectionError("the line broke")

    with monkeypatch.context() as patched:
        patched.setattr(remote, "_download", broken)
        with pytest.raises(LoadError, match="memory://models cannot be read: the line broke"):
            remote.folder("m")
    assert list(cache.glob("repositories/*/m/*")) == []
    assert names(remote.folder("m")) == {"1/model.onnx", ".manifest.json"}


def test_addresses_that_cannot_be(cache: Path) -> None:
    with pytest.raises(ConfigError, match="nonsense"):
        Library([], ["nonsense://models"])
    with pytest.raises(LoadError, match=r"http://127\.0\.0\.1:9/models cannot be read"):
        Library([], ["http://user:secret@127.0.0.1:9/models"])
    with pytest.raises(LoadError, match="memory://nowhere cannot be read: there is no /nowhere"):
        Library([], ["memory://nowhere"])


def test_a_web_server(tmp_path: Path) -> None:
    """Its index pages are read, and files told by their Last-Modified."""
    for path in ("m/1/model.onnx", "m/2/model.onnx", "other/1/model.onnx"):
        (tmp_path / "web" / path).parent.mkdir(parents=True)
        (tmp_path / "web" / path).write_bytes(ONNX)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "web")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            library = Library([], [f"http://127.0.0.1:{server.server_port}/"])
            assert library.names() == ["m", "other"]
            (source,) = library.read("m")
            assert source.version == "2"
            assert source.artifact.read_bytes() == ONNX
            before = library.fingerprint("m")
            (tmp_path / "web/m/2/model.onnx").write_bytes(ONNX + ONNX)
            assert library.fingerprint("m") != before
        finally:
            server.shutdown()
            serving.join()
