"""`ds-models pull org/name`, from a server that speaks the hub's language."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from model_origins import Hub, sha256

PROGRAM = Path(sys.executable).with_name("ds-models")
WEIGHTS = bytes(range(256)) * 12_000
CONTENTS = {
    "config.json": b'{"model_type": "tiny"}',
    "model.safetensors": WEIGHTS,
    "onnx/model.onnx": b"onnx" * 1000,
    "pytorch_model.bin": b"the same weights",
    ".gitattributes": b"hidden",
}
WANTED = {"config.json", "model.safetensors", "onnx/model.onnx"}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub(dict(CONTENTS), {"model.safetensors", "onnx/model.onnx"}) as running:
        yield running


def start(hub: Hub, root: Path, *words: str, **variables: str) -> subprocess.Popen[str]:
    own = {
        "DS_SERVE_CACHE": str(root),
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(root / "hf"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    return subprocess.Popen(
        [PROGRAM, *words], env=kept | own | variables, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def run(hub: Hub, root: Path, *words: str, **variables: str) -> tuple[int, str, str]:
    """Exit status, output, and the last line of what it says to a person."""
    process = start(hub, root, *words, **variables)
    out, err = process.communicate(timeout=100)
    return process.returncode, out.strip(), err.strip()


def last(text: str) -> str:
    return text.rpartition("\n")[2]


def files(folder: Path) -> set[str]:
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {str(path) for path in found if not path.name.startswith(".")}


def visible(root: Path) -> list[Path]:
    return list((root / "pulled").glob("[!.]*/*"))


@pytest.mark.slow
def test_all_that_is_wanted_comes_once_and_keys_stay_at_home(hub: Hub, tmp_path: Path) -> None:
    hub.token = "secret"
    status, out, err = run(hub, tmp_path, "pull", "org/tiny", HF_TOKEN="secret")
    assert status == 0, err
    folder = Path(out)
    assert files(folder) == WANTED
    assert all((folder / name).read_bytes() == CONTENTS[name] for name in WANTED)
    assert {each.authorization for each in hub.seen if each.path.startswith("/cdn/")} == {None}
    record = msgspec.json.decode((folder / ".ds-model.json").read_bytes())
    assert (record["source"], record["revision"]) == ("org/tiny", Hub.COMMIT)
    assert record["files"]["model.safetensors"]["sha256"] == sha256(WEIGHTS)
    assert not list((tmp_path / "pulled" / ".staging").iterdir())

    before = len(hub.seen)
    assert run(hub, tmp_path, "pull", "org/tiny@main", HF_TOKEN="secret")[0] == 0
    again = run(hub, tmp_path, "pull", "org/tiny", HF_TOKEN="secret", HF_HUB_OFFLINE="1")
    assert again[:2] == (0, out)
    assert "HF_HUB_OFFLINE forbids" in again[2]
    assert all("/api/" in each.path for each in hub.seen[before:][:1])


def test_a_dropped_connection_is_taken_up_where_it_broke(hub: Hub, tmp_path: Path) -> None:
    path = hub.resolved("model.safetensors")
    hub.cuts[path] = [1_500_000, 0]
    status, out, err = run(hub, tmp_path, "pull", "org/tiny")
    assert status == 0, err
    assert Path(out, "model.safetensors").read_bytes() == WEIGHTS
    assert [each.range for each in hub.asked(path)] == [None, "bytes=1500000-", "bytes=1500000-"]


def test_a_killed_pull_leaves_nothing_to_see_and_goes_on(hub: Hub, tmp_path: Path) -> None:
    half, go_on = threading.Event(), threading.Event()
    path = hub.resolved("model.safetensors")

    def stall(asked: str) -> None:
        if asked == path and not half.is_set():
            half.set()
            go_on.wait(30)

    hub.half = stall
    process = start(hub, tmp_path, "pull", "org/tiny")
    assert half.wait(30)
    staged = tmp_path / "pulled" / ".staging"
    middle = len(WEIGHTS) // 2
    while sum(f.stat().st_size for f in staged.rglob("*") if f.is_file()) < middle - 65536:
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    go_on.set()
    assert visible(tmp_path) == []
    said = run(hub, tmp_path, "list")[1]
    assert "unfinished" in said

    status, out, err = run(hub, tmp_path, "pull", "org/tiny")
    assert status == 0, err
    assert Path(out, "model.safetensors").read_bytes() == WEIGHTS
    begun = hub.asked(path)[-1].range
    assert begun is not None
    assert 0 < int(begun.removeprefix("bytes=").rstrip("-")) <= middle


@pytest.mark.slow
def test_several_pull_once(hub: Hub, tmp_path: Path) -> None:
    processes = [start(hub, tmp_path, "pull", "org/tiny") for _ in range(3)]
    ended = [(process.communicate(timeout=100), process.returncode) for process in processes]
    assert [status for _, status in ended] == [0, 0, 0], ended
    assert len({out for (out, _), _ in ended}) == 1
    assert len(hub.asked(hub.resolved("model.safetensors"))) == 1


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_what_is_not_what_the_hub_states_is_deleted(hub: Hub, tmp_path: Path, name: str) -> None:
    hub.contents[name] = CONTENTS[name].replace(b"t", b"T").replace(b"\x01", b"\x02")
    status, out, err = run(hub, tmp_path, "pull", "org/tiny")
    assert (status, out) == (1, "")
    assert last(err).startswith(f"error: {name} of org/tiny has ")
    assert "it was deleted" in last(err)
    assert visible(tmp_path) == []

    hub.contents[name] = CONTENTS[name]
    assert run(hub, tmp_path, "pull", "org/tiny")[0] == 0


@pytest.mark.slow
def test_what_cannot_be_had_is_said_in_a_line(hub: Hub, tmp_path: Path) -> None:
    hub.token = "secret"
    private = run(hub, tmp_path, "pull", "org/tiny")
    assert private[0] == 1
    assert "it is private: then set HF_TOKEN" in last(private[2])
    hub.gated = True
    assert "is gated: ask for access" in run(hub, tmp_path, "pull", "org/tiny")[2]
    hub.token = ""
    revision = run(hub, tmp_path, "pull", "org/tiny@v9")
    assert "org/tiny has no revision 'v9'" in last(revision[2])
    assert "has no model org/none" in run(hub, tmp_path, "pull", "org/none")[2]
    offline = run(hub, tmp_path, "pull", "org/tiny", HF_HUB_OFFLINE="1")
    assert offline[0] == 1
    assert last(offline[2]).endswith("HF_HUB_OFFLINE forbids to ask the hub for it")
    closed = run(hub, tmp_path, "pull", "org/tiny", HF_ENDPOINT="http://127.0.0.1:9")
    assert closed[0] == 1
    assert "http://127.0.0.1:9 cannot be reached" in last(closed[2])
    for status, out, err in (private, revision, offline, closed):
        assert status == 1
        assert out == ""
        assert len(err.splitlines()) == 1, err
