"""The repository keeps the promises that its own files make."""

from __future__ import annotations

import argparse
import ast
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ds_serve import cli

ROOT = Path(__file__).parent.parent
FOLDERS = [
    "client", "deploy", "docs", "engines", "loadtests", "profiler", "proto", "quantize", "server"
]  # fmt: skip
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def flags(parser: argparse.ArgumentParser) -> set[str]:
    words = {word for action in parser._actions for word in action.option_strings}
    return {word for word in words if word.startswith("--")} - {"--help", "--version"}


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_top_level_folder_has_something_in_it(folder: str) -> None:
    assert any(path.stat().st_size for path in (ROOT / folder).rglob("*") if path.is_file())


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_every_requirement_is_pinned_and_hashed(lock: Path) -> None:
    text = re.sub(r"\\\n", "", re.sub(r"^#.*\n", "", lock.read_text(), flags=re.MULTILINE))
    lines = text.splitlines()
    assert lines
    loose = [line for line in lines if not re.search(r"==.*--hash=sha256:[0-9a-f]{64}", line)]
    assert loose == []


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_no_lock_file_names_a_place_to_download_from(lock: Path) -> None:
    assert not re.search(r"://|--index|--extra-index|--find-links| @ ", lock.read_text())


def test_what_is_served_is_what_is_tested() -> None:
    def pins(name: str) -> set[str]:
        return set(
            re.findall(r"^\S+==\S+", (ROOT / "requirements" / name).read_text(), re.MULTILINE)
        )

    assert pins("serve.txt") - pins("dev.txt") == set()
    assert not any(pin.startswith("torch==") for pin in pins("serve.txt"))


def test_scripts_can_be_run() -> None:
    scripts = [*(ROOT / "scripts").iterdir(), ROOT / ".ci" / "run"]
    files = [path for path in scripts if path.is_file()]
    assert [path.name for path in files if not os.access(path, os.X_OK)] == []
    assert [path.name for path in files if not path.read_bytes().startswith(b"#!")] == []


def test_shell_scripts_stop_at_the_first_error() -> None:
    for path in [*(ROOT / "scripts").iterdir(), ROOT / ".ci" / "run"]:
        if path.is_file() and "bash" in path.read_text().splitlines()[0]:
            assert "set -euo pipefail" in path.read_text(), path
            subprocess.run(["bash", "-n", path], check=True)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documents_name_only_make_targets_that_exist(document: Path) -> None:
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", document.read_text(), re.MULTILINE))
    assert named - targets() == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []


def test_the_index_of_the_docs_names_every_page() -> None:
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    linked = set(re.findall(r"\]\(([a-z-]+\.md)\)", (ROOT / "docs" / "README.md").read_text()))
    assert pages - linked == set()


def test_the_readme_lists_the_flags_that_there_are() -> None:
    table = (ROOT / "README.md").read_text().partition("\n## Flags\n")[2].partition("\n## ")[0]
    first_column = re.findall(r"^\| (`--[^|]*)\|", table, re.MULTILINE)
    listed = {word for cell in first_column for word in re.findall(r"--[a-z-]+", cell)}
    assert listed == flags(cli.parser())


def test_the_readme_gives_the_two_commands_first() -> None:
    blocks = re.findall(r"```\w*\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks[0].split("\n") == ["make serve", "make test", ""]


def imports(folder: Path) -> Iterator[tuple[Path, str]]:
    """Each of our packages that a Python file below `folder` imports, with the file."""
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            yield from ((path, name.split(".")[0]) for name in names if name.startswith("ds_"))


@pytest.mark.parametrize(
    ("folder", "allowed"),
    [("loadtests", {"ds_client", "ds_engines", "ds_quantize"}), ("deploy", {"ds_serve"})],
)
def test_folders_that_are_no_packages_keep_the_import_contract(
    folder: str, allowed: set[str]
) -> None:
    others = [(path.name, name) for path, name in imports(ROOT / folder) if name not in allowed]
    assert others == []
