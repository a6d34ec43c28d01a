"""A version of a model appears whole or not at all."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from ds_quantize import artifact
from ds_quantize.errors import QuantizeError

PARTS = ("model.onnx", "report.html", "manifest.json")


def fill(folder: Path) -> None:
    for name in PARTS:
        time.sleep(0.02)
        (folder / name).write_text(name)


@contextmanager
def watched(models: Path) -> Iterator[list[str]]:
    """What a server would see that is not whole, while the block runs."""
    broken: list[str] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            broken.extend(_broken(models))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield broken
    finally:
        stop.set()
        thread.join()


def _broken(models: Path) -> Iterator[str]:
    for model in models.glob("[!.]*"):
        if not (model / artifact.CONFIG).exists():
            yield f"{model}: no configuration"
        for version in model.glob("[0-9]*"):
            if {path.name for path in version.iterdir()} != set(PARTS):
                yield f"{version}: not whole"


def test_nothing_half_written_is_ever_seen(tmp_path: Path) -> None:
    models = tmp_path / "models"
    with watched(models) as broken:
        for number in ("1", "2", "3"):
            assert artifact.promote(models / "net", fill, "config") == models / "net" / number
    assert broken == []
    assert (models / "net" / artifact.CONFIG).read_text() == "config"


def test_two_at_a_time_get_versions_of_their_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as threads:
        made = threads.map(lambda _: artifact.promote(tmp_path / "net", fill, ""), range(4))
    assert sorted(path.name for path in made) == ["1", "2", "3", "4"]


def test_the_next_version_is_above_the_highest(tmp_path: Path) -> None:
    (tmp_path / "net" / "7").mkdir(parents=True)
    (tmp_path / "net" / "labels.txt").write_text("a")
    assert artifact.promote(tmp_path / "net", fill, "").name == "8"


@pytest.mark.parametrize("there", [False, True])
def test_a_failure_leaves_the_repository_as_it_was(there: bool, tmp_path: Path) -> None:
    if there:
        artifact.promote(tmp_path / "net", fill, "old")
    before = sorted(tmp_path.rglob("*"))

    def failing(folder: Path) -> None:
        fill(folder)
        raise OSError(28, "No space left on device")

    with pytest.raises(QuantizeError, match=r"the disk of .*net is full; nothing was promoted"):
        artifact.promote(tmp_path / "net", failing, "new")
    assert sorted(tmp_path.rglob("*")) == before


def test_what_a_killed_run_has_left_is_removed(tmp_path: Path) -> None:
    artifact.promote(tmp_path / "net", fill, "")
    left = tmp_path / "net" / ".2.partial"
    left.mkdir()
    (left / "model.onnx").write_text("half")
    (tmp_path / ".other.partial").mkdir()
    assert artifact.promote(tmp_path / "net", fill, "").name == "2"
    assert not left.exists()
    assert artifact.promote(tmp_path / "other", fill, "").name == "1"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net", "other"]


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("file", "is a file; -o names the model's folder"),
        ("net/2", "looks like a version"),
        (".hidden", "cannot be a model's folder"),
    ],
)
def test_an_output_that_cannot_be_a_model_is_told(output: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(QuantizeError, match=said):
        artifact.check(tmp_path / output)
