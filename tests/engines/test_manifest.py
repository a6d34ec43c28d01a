"""A manifest says what a version's files are, and a changed one is noticed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ds_engines import manifest
from ds_engines.errors import LoadError
from ds_engines.manifest import DataSet, DataSets, Judgement, Manifest, Source


def made(folder: Path, *, passed: bool = True) -> Manifest:
    (folder / "weights").mkdir()
    (folder / "model.onnx").write_bytes(b"graph")
    (folder / "weights" / "part.bin").write_bytes(b"numbers")
    judged = Judgement(
        passed,
        limits={"max_accuracy_drop": 0.01},
        values={"max_accuracy_drop": 0.002 if passed else 0.2},
        reasons=[] if passed else ["accuracy fell by 0.2; 0.01 is allowed"],
    )
    whole = Manifest(
        created="2026-11-01T12:00:00Z",
        source=Source("model.pt2", "0" * 64),
        recipe={"name": "int8", "steps": [{"method": "int8-static", "percentile": 99.9}]},
        libraries={"onnxruntime": "1.30.0"},
        data=DataSets(evaluation=DataSet("test.npz", "1" * 64, 500)),
        files=manifest.listing(folder),
        measured={"latency_ms": {"1": 0.2}},
        gate=judged,
    )
    manifest.write(folder, whole)
    return whole


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    whole = made(tmp_path)
    assert manifest.read(tmp_path) == whole
    assert set(whole.files) == {"model.onnx", "weights/part.bin"}
    assert whole.files["model.onnx"].size == 5


def test_a_folder_without_one_is_told_apart(tmp_path: Path) -> None:
    assert manifest.read(tmp_path) is None
    assert manifest.admit(tmp_path) is None
    with pytest.raises(LoadError, match=r"has no manifest\.json"):
        manifest.verify(tmp_path)


def test_files_that_are_as_they_were_are_admitted(tmp_path: Path) -> None:
    whole = made(tmp_path)
    (tmp_path / ".nfs0001").write_text("left by a file system")
    manifest.verify(tmp_path)
    assert manifest.admit(tmp_path) == whole


def _change(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"grabh")


def _cut(folder: Path) -> None:
    (folder / "weights" / "part.bin").write_bytes(b"num")


def _remove(folder: Path) -> None:
    (folder / "weights" / "part.bin").unlink()


def _add(folder: Path) -> None:
    (folder / "other.onnx").write_bytes(b"graph")


CHANGES: dict[Callable[[Path], None], str] = {
    _change: r"/model\.onnx has changed since it was judged",
    _cut: r"/weights/part\.bin has 3 bytes; manifest\.json says 7",
    _remove: r"/weights/part\.bin is missing",
    _add: r"/other\.onnx is not in manifest\.json",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_file_that_is_not_what_was_judged_is_named(
    change: Callable[[Path], None], tmp_path: Path
) -> None:
    made(tmp_path)
    change(tmp_path)
    with pytest.raises(LoadError, match=CHANGES[change]):
        manifest.verify(tmp_path)
    with pytest.raises(LoadError, match=CHANGES[change]):
        manifest.admit(tmp_path)


def test_a_model_that_did_not_pass_is_not_admitted(tmp_path: Path) -> None:
    made(tmp_path, passed=False)
    manifest.verify(tmp_path)
    with pytest.raises(LoadError, match=r"did not pass its gate: accuracy fell by 0\.2"):
        manifest.admit(tmp_path)


@pytest.mark.parametrize("name", ["../outside.onnx", "/etc/hostname"])
def test_a_manifest_cannot_name_files_elsewhere(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "1"
    folder.mkdir()
    made(folder)
    (tmp_path / "outside.onnx").write_bytes(b"graph")
    path = folder / manifest.MANIFEST
    said = json.loads(path.read_text())
    said["files"][name] = said["files"].pop("model.onnx")
    path.write_text(json.dumps(said))
    with pytest.raises(LoadError, match="which is not in its folder"):
        manifest.verify(folder)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not a manifest"),
        ("[]", "is not a manifest"),
        ('{"created": "now"}', "missing required field `format`"),
        ('{"format": 1, "created": 5}', r"Expected `str`, got `int` - at `\$\.created`"),
        ('{"format": 2, "other": 1}', "is of format 2, and this ds-serve reads 1"),
        ("\udcff", "is not a manifest"),
    ],
)
def test_a_broken_manifest_is_told(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / manifest.MANIFEST).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(LoadError, match=rf"/manifest\.json.*{said}"):
        manifest.read(tmp_path)
