"""Pulling from S3, where `s3fs` and moto's server are installed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ds_engines.errors import LoadError
from ds_serve.catalogue.pulled import pull
from ds_serve.catalogue.sources import parse

s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed")
moto = pytest.importorskip("moto.server", reason="moto[s3,server] is not installed")

MODEL = bytes(range(251)) * 40_000
"""More than is asked for at once."""


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "of-the-test",
        "AWS_SECRET_ACCESS_KEY": "of-the-test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    try:
        fs = s3fs.S3FileSystem(skip_instance_cache=True)
        fs.mkdir("models")
        fs.pipe({"models/net/net.onnx": MODEL, "models/net/deeper/labels.txt": b"cat"})
        yield "s3://models"
    finally:
        server.stop()


def test_a_bucket(bucket: str, tmp_path: Path) -> None:
    folder = pull(parse(f"{bucket}/net"), root=tmp_path)
    assert (folder / "net.onnx").read_bytes() == MODEL
    assert (folder / "deeper/labels.txt").read_bytes() == b"cat"
    assert pull(parse(f"{bucket}/net"), root=tmp_path) == folder
    one = pull(parse(f"{bucket}/net/net.onnx"), root=tmp_path)
    assert [path.name for path in one.iterdir() if path.name[0] != "."] == ["net.onnx"]
    with pytest.raises(LoadError, match="there is nothing at s3://models/none"):
        pull(parse(f"{bucket}/none"), root=tmp_path)
    with pytest.raises(LoadError, match="s3://not-there/net"):
        pull(parse("s3://not-there/net"), root=tmp_path)
