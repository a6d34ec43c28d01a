"""Versions in a repository: pulled into it, promoted, taken back, removed."""

from __future__ import annotations

import json
from pathlib import Path

import onnx_models
import pytest
from manifests import WHY, judge

from ds_serve.catalogue import policy
from ds_serve.catalogue.cli import main
from ds_serve.catalogue.versions import Model

CONFIG = """\
# served version_policy { by hand }
name: "net"
version_policy { latest { num_versions: 2 } }  # both
parameters { key: "note" value { string_value: "version_policy { \\" }" } }
"""


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DS_SERVE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "models"


@pytest.fixture
def source(tmp_path: Path) -> str:
    return str(onnx_models.mlp(tmp_path / "source" / "net.onnx", seed=1))


def ran(*words: str | Path) -> None:
    assert main([str(word) for word in words]) == 0


def refused(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    capsys.readouterr()
    assert main([str(word) for word in words]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    return err.strip().rpartition("\n")[2]


def test_each_pull_is_a_version_that_appears_whole(repository: Path, source: str) -> None:
    net = repository / "net"
    ran("pull", source, "--to", net)
    ran("pull", source, "--to", net)
    ran("pull", source, "--to", net, "--version", "7")
    assert Model(net).versions() == [1, 2, 7]
    assert Model(net).served() == [7]
    assert (net / "7/net.onnx").read_bytes() == Path(source).read_bytes()
    assert {path.name for path in repository.iterdir()} == {"net", ".ds-models"}
    assert not list((repository / ".ds-models/pulling").rglob("*.onnx"))


def test_a_version_that_is_there_stays(
    repository: Path, source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ran("pull", source, "--to", repository / "net")
    said = refused(capsys, "pull", source, "--to", repository / "net", "--version", "1")
    assert said.endswith("net/1 is there already; give another --version")


def test_configurations_come_along_and_are_kept(
    repository: Path, source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flat = Path(source).parent
    (flat / "config.pbtxt").write_text("max_batch_size: 4\n")
    ran("pull", flat, "--to", repository / "flat")
    assert (repository / "flat/config.pbtxt").read_text() == "max_batch_size: 4\n"
    assert {path.name for path in (repository / "flat/1").iterdir()} == {
        "net.onnx", ".ds-model.json",
    }  # fmt: skip

    whole = tmp_path / "whole"
    for version in (2, 10):
        onnx_models.mlp(whole / str(version) / "model.onnx", seed=version)
    (whole / "config.pbtxt").write_text("max_batch_size: 8\n")
    (whole / "labels.txt").write_text("cat")
    ran("pull", whole, "--to", repository / "flat")
    new = repository / "flat/2/model.onnx"
    assert new.read_bytes() == (whole / "10/model.onnx").read_bytes()
    assert (repository / "flat/config.pbtxt").read_text() == "max_batch_size: 4\n"
    assert "config.pbtxt is kept; the config.pbtxt that came along" in capsys.readouterr().err
    assert (repository / "flat/labels.txt").read_text() == "cat"


def test_promotions_and_the_way_back(
    repository: Path, source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    net = Model(repository / "net")
    for _ in range(3):
        ran("pull", source, "--to", net.folder)
    ran("promote", net.folder, "1")
    ran("promote", net.folder, "2")
    ran("promote", net.folder, "2")
    assert (net.served(), net.promoted()) == ([2], [2])
    ran("pull", source, "--to", net.folder)
    assert net.served() == [2], "what is pulled later is not served by itself"
    ran("rollback", net.folder)
    assert net.served() == [1]
    ran("rollback", net.folder)
    assert net.served() == [3]
    assert "has no promotion that could be taken back" in refused(capsys, "rollback", net.folder)
    nobody = ("--server", "http://127.0.0.1:9")
    assert "does not answer" in refused(capsys, "promote", net.folder, "2", *nobody)
    assert net.served() == [3]
    assert "has no promotion" in refused(capsys, "rollback", net.folder)
    ran("pull", source, "--to", net.folder, "--promote")
    assert net.served() == [5]


def test_a_configuration_keeps_everything_but_its_policy(repository: Path, source: str) -> None:
    net = repository / "net"
    ran("pull", source, "--to", net)
    ran("pull", source, "--to", net)
    (net / "config.pbtxt").write_text(CONFIG)
    ran("promote", net, "1")
    changed = "version_policy: { specific: { versions: [ 1 ] } }"
    expected = CONFIG.replace("version_policy { latest { num_versions: 2 } }", changed)
    assert (net / "config.pbtxt").read_text() == expected
    ran("rollback", net)
    assert Model(net).served() == [1, 2]


@pytest.mark.parametrize(
    "text",
    ["", "name: 'a'", "version_policy: < all < > >\n", "version_policy {\n all {}\n}\nname: 'a'"],
)
def test_policies_in_every_spelling(text: str, tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    before.write_text(text)
    after.write_text(policy.with_versions(text, [3]))
    policy.require_same(before, after)
    assert after.read_text().count("version_policy") == 1
    assert "versions: [ 3 ]" in after.read_text()


def test_what_is_served_is_not_removed(
    repository: Path, source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    net = Model(repository / "net")
    for _ in range(3):
        ran("pull", source, "--to", net.folder)
    ran("promote", net.folder, "1")
    ran("promote", net.folder, "2")
    assert "version 2" in refused(capsys, "remove", net.folder, "2")
    assert "say which version" in refused(capsys, "remove", net.folder)
    assert "has no version 9; there are: 1, 2, 3" in refused(capsys, "promote", net.folder, "9")
    ran("remove", net.folder, "1")
    ran("rollback", net.folder)
    assert net.served() == [3], "the removed one is no way back any more"
    ran("remove", net.folder, "3", "--force")
    assert net.versions() == [2]
    assert "there is no model folder" in refused(capsys, "rollback", repository / "none")


def test_what_has_changed_since_is_found_and_not_promoted(
    repository: Path, source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    net = repository / "net"
    ran("pull", source, "--to", net)
    ran("pull", source, "--to", net)
    ran("verify", net)
    (net / "1/more.txt").write_text("?")
    with (net / "1/net.onnx").open("ab") as file:
        file.write(b"!")
    said = refused(capsys, "promote", net, "1")
    assert "not as it was pulled: more.txt was not there; net.onnx has SHA-256" in said
    assert main(["verify", str(net)]) == 1
    out, err = capsys.readouterr()
    assert "version 2: as it was pulled" in out
    assert err.count("error: ") == 1


def test_what_did_not_pass_its_gate_is_not_promoted(
    repository: Path, source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    net = repository / "net"
    ran("pull", source, "--to", net)
    judge(Path(source).parent, passed=False)
    ran("pull", Path(source).parent, "--to", net)
    assert f"Version 2 will not be served: {net.parent}" in capsys.readouterr().err
    assert WHY in refused(capsys, "promote", net, "2")
    assert Model(net).served() == [1]


def test_the_list_says_what_is_served(
    repository: Path, source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ran("pull", source, "--to", repository / "net")
    ran("pull", source, "--to", repository / "net", "--promote")
    ran("pull", source, "--to", repository / "other")
    capsys.readouterr()
    ran("list", repository, "--json")
    rows = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["version"], row["state"]) for row in rows] == [
        ("net", 1, ""), ("net", 2, "promoted"), ("other", 1, "served"),
    ]  # fmt: skip
    assert rows[0]["source"] == source
    ran("list", repository / "net")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["NAME", "VERSION", "STATE", "GATE", "SIZE", "PULLED", "SOURCE"]
    assert len(lines) == 3


def test_names_that_are_none(
    repository: Path, source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, "pull", source, "--to", repository / "a b")
    assert "'a b' cannot be a model's name" in said
    assert "is an address" in refused(capsys, "promote", "s3://bucket/net", "1")
    assert "--to" in refused(capsys, "pull", source, "--promote")
