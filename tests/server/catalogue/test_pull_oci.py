"""Pulling from OCI registries: one of the test's own, and Debian's where it is installed."""

from __future__ import annotations

import base64
import io
import json
import shutil
import socket
import subprocess
import tarfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from model_origins import Registry, sha256

from ds_engines.errors import ConfigError, LoadError
from ds_serve.catalogue import download
from ds_serve.catalogue.pulled import pull
from ds_serve.catalogue.sources import parse

MODEL = b"onnx" * 300_000
TITLE = "org.opencontainers.image.title"
FILE = {"mediaType": "application/octet-stream"}


def named(name: str) -> dict[str, object]:
    return {**FILE, "annotations": {TITLE: name}}


def tar(contents: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        for name, data in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return made.getvalue()


TAR = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip"}


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(download, "PAUSE", 0.001)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as running:
        yield running


def files(folder: Path) -> dict[str, bytes]:
    found = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {str(name): path.read_bytes() for name, path in found.items() if name.name[0] != "."}


def test_files_and_folders(registry: Registry, tmp_path: Path) -> None:
    digest = registry.push(
        "1.0", [(MODEL, named("net.onnx")), (tar({"deeper/labels.txt": b"cat"}), TAR)]
    )
    where = f"oci://{registry.host}/org/net"
    blob = f"/v2/org/net/blobs/sha256:{sha256(MODEL)}"
    registry.cuts[blob] = [700_000]
    folder = pull(parse(f"{where}:1.0"), root=tmp_path)
    assert files(folder) == {"net.onnx": MODEL, "deeper/labels.txt": b"cat"}
    assert registry.asked(blob)[-1].range == "bytes=700000-"
    assert files(pull(parse(f"{where}@{digest}"), root=tmp_path)) == files(folder)


def test_an_index_and_a_layer_without_a_name(registry: Registry, tmp_path: Path) -> None:
    kind = {"mediaType": "application/vnd.docker.ai.gguf.v3"}
    digest = registry.push("inner", [(MODEL, kind), (b"{}", {"mediaType": "application/json"})])
    registry.put("latest", {"manifests": [{"digest": digest, "size": 1}]})
    assert files(pull(parse(f"oci://{registry.host}/chat"), root=tmp_path)) == {"model.gguf": MODEL}


def test_a_login(registry: Registry, tmp_path: Path) -> None:
    registry.login = "me:secret"
    registry.push("1", [(MODEL, named("net.onnx"))])
    source = f"oci://{registry.host}/net:1"
    with pytest.raises(LoadError, match=r"may not be read \(401 .*run docker login 127"):
        pull(parse(source), root=tmp_path)
    (tmp_path / "docker").mkdir()
    auth = base64.b64encode(b"me:secret").decode()
    config = {"auths": {registry.host: {"auth": auth}}}
    (tmp_path / "docker/config.json").write_text(json.dumps(config))
    assert files(pull(parse(source), root=tmp_path)) == {"net.onnx": MODEL}


def test_what_must_not_be_stored(registry: Registry, tmp_path: Path) -> None:
    source = f"oci://{registry.host}/net"
    registry.push("up", [(b"x", named("../outside"))])
    with pytest.raises(LoadError, match=r"'\.\./outside', which cannot be stored"):
        pull(parse(f"{source}:up"), root=tmp_path)
    registry.push("tar", [(tar({"../outside": b"x"}), TAR)])
    with pytest.raises(LoadError, match=r"is unfit: .*outside"):
        pull(parse(f"{source}:tar"), root=tmp_path)
    assert not list(tmp_path.rglob("outside"))
    registry.push("wrong", [(MODEL, named("net.onnx"))])
    registry.blobs[f"sha256:{sha256(MODEL)}"] = MODEL[::-1]
    with pytest.raises(LoadError, match=rf"net.onnx .* expected {sha256(MODEL)}"):
        pull(parse(f"{source}:wrong"), root=tmp_path)
    assert not list((tmp_path / "pulled").glob("[!.]*/*"))


def test_what_is_not_there(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"has no net with none"):
        pull(parse(f"oci://{registry.host}/net:none"), root=tmp_path)
    with pytest.raises(LoadError, match="cannot be pulled: Connection refused"):
        pull(parse("oci://127.0.0.1:9/net:1"), root=tmp_path)
    with pytest.raises(ConfigError, match="give oci://host/repository:tag"):
        parse("oci://net")


@pytest.fixture
def debian(tmp_path: Path) -> Iterator[str]:
    """The host and port of the registry that Debian packages."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("docker-registry is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{probe.getsockname()[1]}"
    config = tmp_path / "registry.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: error}}\nhttp: {{addr: '{host}'}}\n"
        f"storage: {{filesystem: {{rootdirectory: '{tmp_path / 'registry'}'}}}}\n"
    )
    process = subprocess.Popen([program, "serve", config], stderr=subprocess.DEVNULL)
    try:
        _answers(f"http://{host}/v2/")
        yield host
    finally:
        process.terminate()
        process.wait(10)


def _answers(url: str) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            urllib.request.urlopen(url).close()
            return
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def send(method: str, url: str, data: bytes, kind: str = "application/octet-stream") -> str:
    """The address that is answered with."""
    request = urllib.request.Request(url, data, {"Content-Type": kind}, method=method)
    with urllib.request.urlopen(request) as answer:
        return str(answer.headers.get("Location", ""))


def test_debians_registry(debian: str, tmp_path: Path) -> None:
    api = f"http://{debian}/v2/org/net"
    layers = []
    for data, name in ((MODEL, "net.onnx"), (b"cat", "labels.txt"), (b"{}", "")):
        digest = f"sha256:{sha256(data)}"
        place = send("POST", f"{api}/blobs/uploads/", b"")
        send("PUT", f"{place}&digest={digest}", data)
        layers.append({"digest": digest, "size": len(data), **named(name)})
    kind = "application/vnd.oci.image.manifest.v1+json"
    config = {**layers.pop(), "mediaType": "application/vnd.oci.empty.v1+json", "annotations": {}}
    manifest = {"schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers}
    send("PUT", f"{api}/manifests/1.0", json.dumps(manifest).encode(), kind)
    folder = pull(parse(f"oci://{debian}/org/net:1.0"), root=tmp_path / "cache")
    assert files(folder) == {"net.onnx": MODEL, "labels.txt": b"cat"}
