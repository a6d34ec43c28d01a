"""Pulling from Google's and Azure's object stores, from servers here that speak their languages:
where `gcsfs` and `gcp-storage-emulator`, `adlfs` and npm's `azurite` are installed.
"""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import until

from ds_engines.errors import LoadError
from ds_serve.catalogue.pulled import pull
from ds_serve.catalogue.sources import parse

# How the stores' own packages upload is theirs to say.
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")

MODEL = bytes(range(251)) * 40_000
"""More than is asked for at once."""

ACCOUNT = "devstoreaccount1"
KEY = "b2YgdGhlIHRlc3Q="
AZURITE = shutil.which("azurite-blob")


@pytest.fixture
def google(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    gcsfs = pytest.importorskip("gcsfs", reason="gcsfs is not installed")
    emulator = pytest.importorskip(
        "gcp_storage_emulator.server", reason="gcp-storage-emulator is not installed"
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    with emulator.create_server("127.0.0.1", port, in_memory=True, default_bucket="models"):
        fs = gcsfs.GCSFileSystem(token="anon", skip_instance_cache=True)
        fs.pipe({"models/net/net.onnx": MODEL, "models/net/deeper/labels.txt": b"cat"})
        yield "gs://models"


@pytest.fixture
def azure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    adlfs = pytest.importorskip("adlfs", reason="adlfs is not installed")
    if AZURITE is None:
        pytest.skip("azurite is not installed: npm install -g azurite")
    monkeypatch.setenv("AZURITE_ACCOUNTS", f"{ACCOUNT}:{KEY}")
    said = tmp_path / "said"
    words = ["--blobHost", "127.0.0.1", "--blobPort", "0", "--inMemoryPersistence"]
    words += ["--skipApiVersionCheck", "--disableTelemetry"]
    with said.open("wb") as output, subprocess.Popen([AZURITE, *words], stdout=output) as server:
        try:
            until(lambda: _address(said), "azurite does not listen", 60, said.read_text)
            connection = (
                f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};"
                f"BlobEndpoint={_address(said)}/{ACCOUNT};"
            )
            monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", connection)
            fs = adlfs.AzureBlobFileSystem(connection_string=connection, skip_instance_cache=True)
            fs.mkdir("models")
            fs.pipe({"models/net/net.onnx": MODEL, "models/net/deeper/labels.txt": b"cat"})
            yield "az://models"
        finally:
            server.terminate()
            server.wait(30)


def _address(said: Path) -> str:
    found = re.search(r"successfully listens on (http\S+)", said.read_text())
    return found[1] if found else ""


@pytest.mark.parametrize("store", ["google", "azure"])
def test_a_bucket(store: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    bucket = request.getfixturevalue(store)
    folder = pull(parse(f"{bucket}/net"), root=tmp_path)
    assert (folder / "net.onnx").read_bytes() == MODEL
    assert (folder / "deeper/labels.txt").read_bytes() == b"cat"
    assert pull(parse(f"{bucket}/net"), root=tmp_path) == folder
    one = pull(parse(f"{bucket}/net/net.onnx"), root=tmp_path)
    assert [path.name for path in one.iterdir() if path.name[0] != "."] == ["net.onnx"]
    with pytest.raises(LoadError, match=f"there is nothing at {bucket}/none"):
        pull(parse(f"{bucket}/none"), root=tmp_path)
    with pytest.raises(LoadError, match="not-there"):
        pull(parse(f"{bucket.partition(':')[0]}://not-there/net"), root=tmp_path)
