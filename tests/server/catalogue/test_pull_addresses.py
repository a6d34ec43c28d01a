"""Pulling from folders, web servers and file systems of fsspec; full disks."""

from __future__ import annotations

import base64
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from model_origins import Origin, sha256

from ds_engines.errors import ConfigError, LoadError
from ds_serve.catalogue import Progress, download
from ds_serve.catalogue.pulled import pull
from ds_serve.catalogue.sources import Patterns, parse

MODEL = bytes(range(251)) * 9_000


class Notes(Progress):
    def __init__(self) -> None:
        self.texts: list[str] = []
        self.sizes: list[tuple[int, int]] = []

    def note(self, text: str) -> None:
        self.texts.append(text)

    def downloaded(self, done: int, total: int) -> None:
        self.sizes.append((done, total))


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "PAUSE", 0.001)


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin() as running:
        running.files = {
            "/models/net/net.onnx": MODEL,
            "/models/net/deeper/labels of it.txt": b"cat\ndog",
            "/models/net/.hidden": b"",
        }
        yield running


def files(folder: Path) -> dict[str, bytes]:
    found = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {str(name): path.read_bytes() for name, path in found.items() if name.name[0] != "."}


def test_a_folder_of_this_machine(tmp_path: Path) -> None:
    source = tmp_path / "net"
    (source / "deeper").mkdir(parents=True)
    (source / "net.onnx").write_bytes(MODEL)
    (source / "deeper/labels.txt").write_bytes(b"cat")
    notes = Notes()
    folder = pull(parse(str(source)), root=tmp_path / "cache", progress=notes)
    assert files(folder) == {"net.onnx": MODEL, "deeper/labels.txt": b"cat"}
    assert notes.sizes[-1] == (len(MODEL) + 3, len(MODEL) + 3)
    assert pull(parse(str(source)), root=tmp_path / "cache") == folder
    (source / "deeper/labels.txt").write_bytes(b"tiger")
    assert files(pull(parse(str(source)), root=tmp_path / "cache"))["deeper/labels.txt"] == b"tiger"


def test_a_file_system_of_fsspec(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/net/net.onnx", MODEL)
    memory.pipe("/bucket/net/deeper/labels.txt", b"cat")
    folder = pull(parse("memory://bucket/net"), root=tmp_path)
    assert files(folder) == {"net.onnx": MODEL, "deeper/labels.txt": b"cat"}
    one = pull(parse("memory://bucket/net/net.onnx"), root=tmp_path)
    assert files(one) == {"net.onnx": MODEL}
    with pytest.raises(LoadError, match="there is nothing at memory://bucket/none"):
        pull(parse("memory://bucket/none"), root=tmp_path)


def test_a_folder_of_a_web_server(origin: Origin, tmp_path: Path) -> None:
    folder = pull(parse(f"{origin.url}/models/net/"), root=tmp_path)
    assert files(folder) == {"net.onnx": MODEL, "deeper/labels of it.txt": b"cat\ndog"}
    some = Patterns(include=("*.onnx",))
    assert files(pull(parse(f"{origin.url}/models/net/"), root=tmp_path, wanted=some)) == {
        "net.onnx": MODEL
    }
    with pytest.raises(LoadError, match=r"no file that is wanted; there are: .*net\.onnx"):
        pull(parse(f"{origin.url}/models/net/"), root=tmp_path, wanted=Patterns(("*.gguf",)))


def test_a_broken_download_goes_on_in_the_next_run(origin: Origin, tmp_path: Path) -> None:
    path = "/models/net/net.onnx"
    source = f"{origin.url}{path}"
    origin.cuts[path] = [0, 1_000_000, *[0] * download.ATTEMPTS]  # the first is a look at it
    with pytest.raises(LoadError, match="what has come is kept, run the same again to go on"):
        pull(parse(source), root=tmp_path)
    assert not list((tmp_path / "pulled").glob("[!.]*/*"))
    folder = pull(parse(source), root=tmp_path)
    assert files(folder) == {"net.onnx": MODEL}
    assert origin.asked(path)[-1].range == "bytes=1000000-"


def test_a_server_that_sends_no_parts(origin: Origin, tmp_path: Path) -> None:
    path = "/models/net/net.onnx"
    origin.ranges = False
    origin.cuts[path] = [0, 1_000_000]
    assert files(pull(parse(f"{origin.url}{path}"), root=tmp_path)) == {"net.onnx": MODEL}


def test_a_file_that_changes_meanwhile_is_never_mixed(origin: Origin, tmp_path: Path) -> None:
    path = "/models/net/net.onnx"
    origin.cuts[path] = [0, 1_000_000]
    other = MODEL[::-1]

    def change(_: str) -> None:
        origin.files[path] = other

    source = parse(f"{origin.url}{path}")
    read = source.read

    def reads(part, offset):  # type: ignore[no-untyped-def]
        if offset:
            change(path)
        return read(part, offset)

    source.read = reads  # type: ignore[method-assign]
    assert files(pull(source, root=tmp_path)) == {"net.onnx": other}


def test_a_stated_hash_is_held_to(origin: Origin, tmp_path: Path) -> None:
    source = f"{origin.url}/models/net/net.onnx"
    with pytest.raises(LoadError, match=rf"SHA-256 {sha256(MODEL)}, expected {'0' * 64}"):
        pull(parse(source), root=tmp_path, sha256="0" * 64)
    stated = base64.b64encode(bytes.fromhex(sha256(MODEL + b"!"))).decode()
    origin.headers = {"Repr-Digest": f"sha-256=:{stated}:"}
    with pytest.raises(LoadError, match=sha256(MODEL + b"!")):
        pull(parse(source), root=tmp_path)
    origin.headers = {}
    assert pull(parse(source), root=tmp_path, sha256=sha256(MODEL))


def test_what_is_not_there_and_who_may_not(origin: Origin, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"there is nothing at .*: the server answers 404"):
        pull(parse(f"{origin.url}/none.onnx"), root=tmp_path)
    with pytest.raises(LoadError, match="cannot be reached: Connection refused"):
        pull(parse("http://127.0.0.1:9/net.onnx"), root=tmp_path)
    with pytest.raises(ConfigError, match=r"no model named 'no-such'.*nor is it a file, a folder"):
        parse("no-such")
    with pytest.raises(ConfigError, match=r"cannot be read: .*gone"):
        pull(parse("gone://bucket/net"), root=tmp_path)
    assert not (tmp_path / "pulled").exists()


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("memory://bucket/net.onnx", "net"),
        ("memory://bucket/net/", "net"),
        ("memory://bucket/net/1/model.onnx", "net"),
        ("https://models.example/a%20b.tar", "a-b"),
        ("memory://bucket/net-v1.2-instruct-large", "net-v1.2-instruct-large"),
    ],
)
def test_names(source: str, name: str) -> None:
    assert parse(source).name == name


def test_passwords_are_kept_to_themselves(tmp_path: Path) -> None:
    source = parse("https://me:secret@models.example/net.onnx?X-Signature=secret")
    assert "secret" not in source.where
    assert source.where.startswith("https://models.example/net.onnx?")


def test_a_disk_that_cannot_hold_it(
    origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=len(MODEL) - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(LoadError, match=r"is too full for .*net\.onnx, which needs 2\.3 MB"):
        pull(parse(f"{origin.url}/models/net/net.onnx"), root=tmp_path)


FILL = """
set -e
mount -t tmpfs -o size=1200k none "$1"
export DS_SERVE_CACHE="$1"
exec "$2" pull "$3"
"""


def test_a_disk_that_is_full_in_the_middle(origin: Origin, tmp_path: Path) -> None:
    """The size is not known before: the server does not say it."""
    can = subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False)
    if can.returncode:
        pytest.skip(f"no file system of its own here: {can.stderr.decode().strip()}")
    origin.sizes = False
    (tmp_path / "small").mkdir()
    source = f"{origin.url}/models/net/net.onnx"
    program = Path(sys.executable).with_name("ds-models")
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", FILL, "sh", tmp_path / "small", program, source],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout == ""
    assert "is too full for" in done.stderr
    assert "run the same again to go on" in done.stderr.splitlines()[-1]
