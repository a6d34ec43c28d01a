"""The cache stays within its limit, and keeps what is in use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ds_engines.errors import ConfigError, LoadError
from ds_serve.catalogue import Progress, prune
from ds_serve.catalogue.cache import hold, keep, used_made
from ds_serve.catalogue.cli import main
from ds_serve.catalogue.pulled import pull, used
from ds_serve.catalogue.sources import parse

SIZE = 100_000


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DS_SERVE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DS_SERVE_CACHE_LIMIT", raising=False)
    return tmp_path / "cache"


def source(root: Path, name: str, content: bytes = b"a") -> str:
    path = root.parent / "sources" / f"{name}.onnx"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content * SIZE)
    return str(path)


def put(root: Path, name: str, age: float) -> Path:
    """A model that was used so many seconds ago, by a process that has ended since."""
    where = source(root, name)
    pid = os.fork()
    if pid == 0:
        pull(parse(where), root=root)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    (folder,) = (root / "pulled").glob(f"{name}-*/*")
    then = folder.stat().st_mtime - age
    os.utime(used(root, folder), (then, then))
    return folder


def names(root: Path) -> list[str]:
    return [item.name for item in prune.items(root)]


def test_what_was_not_used_for_longest_goes_first(root: Path) -> None:
    for age, name in enumerate(("new", "middle", "old")):
        put(root, name, age * 1000.0)
    assert names(root) == ["old", "middle", "new"]
    room = 2 * SIZE + 3000
    pull(parse(source(root, "next")), root=root, limit=room)
    assert names(root) == ["new", "next"]


def test_nothing_goes_that_is_in_use(root: Path) -> None:
    put(root, "free", 10.0)
    busy = put(root, "busy", 1000.0)
    descriptor = hold(used(root, busy))
    os.utime(used(root, busy), (1, 1))
    assert main(["prune", "--limit", "0"]) == 0
    assert names(root) == ["busy"]
    assert main(["remove", "busy"]) == 1
    os.close(descriptor)
    assert main(["remove", "busy"]) == 0
    assert names(root) == []
    assert not list((root / ".trash").rglob("*.onnx"))


def test_a_model_above_the_limit_is_not_even_begun(root: Path) -> None:
    kept = put(root, "kept", 10.0)
    with pytest.raises(LoadError, match=r"big.onnx has 0\.1 MB, and the cache is limited to 0\.1"):
        pull(parse(source(root, "big", b"b")), root=root, limit=SIZE - 1)
    assert kept.exists()


def test_an_older_state_goes_with_prune(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(root, "net", 100.0)
    source(root, "net", b"b")
    newer = pull(parse(str(root.parent / "sources/net.onnx")), root=root)
    assert names(root) == ["net", "net"]
    assert main(["prune"]) == 0
    assert capsys.readouterr().out == "removed 1 of the cache, 0.1 MB\n"
    assert [item.folder for item in prune.items(root)] == [newer]


def test_the_environment_says_the_limit(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put(root, "old", 10.0)
    monkeypatch.setenv("DS_SERVE_CACHE_LIMIT", "0.15MB")
    assert main(["pull", source(root, "new")]) == 0
    assert names(root) == ["new"]
    monkeypatch.setenv("DS_SERVE_CACHE_LIMIT", "much")
    assert main(["pull", source(root, "other")]) == 1
    assert "DS_SERVE_CACHE_LIMIT is 'much'; give a size" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("1000", 1000), ("20GB", 20 * 10**9), ("1.5 TiB", 3 * 2**39), ("5m", 5 * 10**6)],
)
def test_sizes(text: str, size: int) -> None:
    assert prune.parse_size(text, "it") == size


def test_a_size_that_is_none() -> None:
    with pytest.raises(ConfigError, match="--limit is '-1'"):
        prune.parse_size("-1", "--limit")


def make(root: Path, kind: str, name: str, age: float) -> Path:
    """What a server that has ended since has made of a model, so many seconds ago."""
    folder = root / kind / name
    file = folder / ("net/1/model.onnx" if kind == "quantized" else "openvino_model.bin")
    file.parent.mkdir(parents=True)
    file.write_bytes(b"q" * SIZE)
    os.close(hold(used_made(root, kind, name)))
    then = folder.stat().st_mtime - age
    os.utime(used_made(root, kind, name), (then, then))
    return folder


def test_what_was_made_here_counts_and_goes_too(root: Path) -> None:
    oldest = make(root, "quantized", "0a1b", 3000.0)
    older = make(root, "openvino", "chat-int8-ff", 2000.0)
    put(root, "new", 10.0)
    assert names(root) == ["net", "chat-int8-ff", "new"]
    pull(parse(source(root, "next")), root=root, limit=3 * SIZE + 3000)
    assert names(root) == ["chat-int8-ff", "new", "next"]
    assert not oldest.exists()
    keep(older / "openvino_model.bin")
    assert main(["prune", "--limit", "0"]) == 0
    assert older.exists(), "a server has it, by its path"
    assert main(["verify", "chat-int8-ff"]) == 1, "there is nothing to compare it with"


def test_a_conversion_that_was_killed_leaves_nothing_for_ever(root: Path) -> None:
    part = root / "openvino" / ".chat-ff.part"
    part.mkdir(parents=True)
    (part / "openvino_model.bin").write_bytes(b"q" * SIZE)
    assert [item.finished for item in prune.items(root)] == [False]
    assert main(["prune", "--limit", "0"]) == 0
    assert not part.exists()


def test_shrinking_says_what_could_not_go(root: Path) -> None:
    texts: list[str] = []

    class Notes(Progress):
        def note(self, text: str) -> None:
            texts.append(text)

    pull(parse(source(root, "busy")), root=root)
    assert prune.shrink(root, 10, Notes()) == []
    assert "above 0.0 MB: the rest is in use" in texts[-1]
