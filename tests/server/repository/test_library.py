"""What a repository's folders say is to be served."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ds_engines.errors import ConfigError, InvalidRequest, NotFound, ServeError
from ds_serve.models import is_repository, resolve
from ds_serve.repository import upload
from ds_serve.repository.folder import fingerprint
from ds_serve.repository.library import Library

# ModelProto: ir_version 8; graph, a message of 2 bytes that names it "g"... and no more.
ONNX = b"\x08\x08" + b"\x3a\x03\x12\x01g" + b"\x42\x02\x10\x0d"


def put(path: Path, data: bytes | str = ONNX) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def served(folder: Path, name: str) -> dict[str, str]:
    """Version to the file that is served, below the model's folder."""
    sources = Library([], [str(folder)]).read(name)
    return {one.version: str(one.artifact.relative_to(folder / name)) for one in sources}


def refusal(folder: Path, name: str) -> str:
    with pytest.raises(ServeError) as refused:
        Library([], [str(folder)]).read(name)
    return str(refused.value)


@pytest.mark.parametrize(
    ("policy", "versions"),
    [
        ("", ["10"]),
        ("version_policy {}", ["10"]),
        ("version_policy { latest {} }", ["10"]),
        ("version_policy { latest { num_versions: 2 } }", ["9", "10"]),
        ("version_policy { latest { num_versions: 9 } }", ["1", "9", "10"]),
        ("version_policy { all {} }", ["1", "9", "10"]),
        ("version_policy { specific { versions: [9, 1, 9] } }", ["1", "9"]),
        ("version_policy { specific { versions: [7, 9] } }", ["9"]),
    ],
)
def test_the_policy_chooses_versions(tmp_path: Path, policy: str, versions: list[str]) -> None:
    for version in ("1", "9", "10", "010", "0", "one"):
        put(tmp_path / "m" / version / "model.onnx")
    put(tmp_path / "m/config.pbtxt", policy)
    assert served(tmp_path, "m") == {each: f"{each}/model.onnx" for each in versions}


def test_no_version_that_the_policy_names_is_there(tmp_path: Path) -> None:
    put(tmp_path / "m/1/model.onnx")
    put(tmp_path / "m/config.pbtxt", "version_policy { specific { versions: [2, 3] } }")
    assert "names the versions [2, 3], none of which is there" in refusal(tmp_path, "m")


@pytest.mark.parametrize(
    ("files", "config", "file"),
    [
        (["model.onnx"], "", "model.onnx"),
        (["model.onnx", "other.onnx"], "", "model.onnx"),
        (["net.onnx", "labels.txt"], "", "net.onnx"),
        (["model.onnx", "b.onnx"], 'default_model_filename: "b.onnx"', "b.onnx"),
        (["weights"], 'default_model_filename: "weights"', "weights"),
    ],
)
def test_the_file_of_a_version(tmp_path: Path, files: list[str], config: str, file: str) -> None:
    for name in files:
        put(tmp_path / "m/1" / name)
    put(tmp_path / "m/config.pbtxt", config)
    assert served(tmp_path, "m") == {"1": f"1/{file}"}


@pytest.mark.parametrize(
    ("files", "config", "said"),
    [
        (["1/a.onnx", "1/b.onnx"], "", "several models (a.onnx, b.onnx)"),
        (["1/model.txt"], "", "holds no model file"),
        (["one/model.onnx"], "", "has no folder of a version"),
        (["1/a.onnx"], 'default_model_filename: "b.onnx"', "no file 'b.onnx'"),
        (["1/a.onnx"], 'default_model_filename: "../../n/1/a.onnx"', "a file's name alone"),
        (["1/a.onnx"], 'name: "n"', "name is 'n', but the model's folder is called 'm'"),
        (["1/a.onnx"], "nmae: 3", "no field 'nmae'"),
    ],
)
def test_what_cannot_be_served_says_why(
    tmp_path: Path, files: list[str], config: str, said: str
) -> None:
    for name in files:
        put(tmp_path / "m" / name)
    put(tmp_path / "m/config.pbtxt", config)
    assert said in refusal(tmp_path, "m")


def test_a_folder_without_versions_is_version_1(tmp_path: Path) -> None:
    put(tmp_path / "m/model.onnx")
    assert served(tmp_path, "m") == {"1": "model.onnx"}


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "../m", "/etc", "m\0", "a b", "m/1"])
def test_a_name_is_never_a_path(tmp_path: Path, name: str) -> None:
    put(tmp_path / "m/1/model.onnx")
    with pytest.raises(InvalidRequest, match="cannot be a model's name"):
        Library([], [str(tmp_path)]).read(name)


def test_names_of_all_repositories(tmp_path: Path) -> None:
    given = resolve(str(put(tmp_path / "given.onnx")))
    put(tmp_path / "a/m/1/model.onnx")
    put(tmp_path / "a/.git/1/model.onnx")
    put(tmp_path / "a/README.md", "")
    put(tmp_path / "b/n/1/model.onnx")
    put(tmp_path / "b/both/1/model.onnx")
    put(tmp_path / "a/both/1/model.onnx")
    library = Library([given], [str(tmp_path / "a"), str(tmp_path / "b")])
    assert library.names() == ["given", "both", "m", "n"]
    with pytest.raises(ConfigError, match="several repositories have it"):
        library.read("both")
    with pytest.raises(NotFound, match="'other'"):
        library.read("other")
    with pytest.raises(ConfigError, match="no such folder"):
        Library([], [str(tmp_path / "c")])
    with pytest.raises(ConfigError, match="'m' is given by --model"):
        Library([resolve(f"m={tmp_path}/given.onnx")], [str(tmp_path / "a")])


def test_the_policy_holds_for_a_model_folder_too(tmp_path: Path) -> None:
    for version in ("1", "2"):
        put(tmp_path / "m" / version / "model.onnx")
    put(tmp_path / "m/config.pbtxt", "version_policy { all {} }")
    whole, one = (Library([resolve(str(tmp_path / path))], []) for path in ("m", "m/1"))
    assert [source.version for source in whole.read("m")] == ["1", "2"]
    assert [source.version for source in one.read("m")] == ["1"]


def test_which_folders_are_repositories(tmp_path: Path) -> None:
    put(tmp_path / "all/m/1/model.onnx")
    (tmp_path / "empty").mkdir()
    found = {path for path in ("all", "all/m", "all/m/1", "empty", "none")
             if is_repository(str(tmp_path / path))}  # fmt: skip
    assert found == {"all"}


def test_a_fingerprint_tells_what_has_changed(tmp_path: Path) -> None:
    file = put(tmp_path / "1/model.onnx")
    put(tmp_path / "2/model.onnx")
    before = fingerprint(tmp_path)
    assert fingerprint(tmp_path) == before
    os.utime(file, ns=(1, 1))
    put(tmp_path / "config.pbtxt", "")
    after = fingerprint(tmp_path)
    assert {key for key in after if after[key] != before.get(key)} == {"", "1"}


class TestUploads:
    def test_they_lie_as_in_a_repository(self, tmp_path: Path) -> None:
        config = '{"name": "m", "max_batch_size": 0, "versionPolicy": {"all": {}}}'
        files = {"1/model.onnx": b"one", "12/model.onnx": b"twelve"}
        folder = upload.stage(tmp_path / "home", config, files)
        assert (folder / "12/model.onnx").read_bytes() == b"twelve"
        said = (folder / "config.pbtxt").read_text()
        assert "max_batch_size: 0" in said
        assert 'name: "m"' in said
        assert folder.stat().st_mode & 0o077 == 0

    @pytest.mark.parametrize(
        "path",
        ["1/model.py", "1/a.tar.PyC", "1/lib.so", "../1/m", "1/../m", "//1/m", "1\\m", "1/m\n"],
    )
    def test_nothing_else_is_written(self, tmp_path: Path, path: str) -> None:
        with pytest.raises(InvalidRequest):
            upload.stage(tmp_path / "home", None, {"1/model.onnx": b"", path: b""})
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        "config", ["", "{", "[]", "3", '{"nmae": "m"}', '{"max_batch_size": "x"}', "[" * 5000]
    )
    def test_a_configuration_that_is_none(self, config: str) -> None:
        with pytest.raises(InvalidRequest, match="config is no ModelConfig in JSON"):
            upload.config_text(config)
