"""All benchmarks as one command, and the page that it adds to."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from loadtests.bench import machine, page
from loadtests.bench.__main__ import main
from loadtests.bench.page import Outcome
from loadtests.bench.parts import Part, parts
from loadtests.peers import environments

WHEN = datetime(2026, 11, 22, 7, 5, tzinfo=UTC)
GOOD = Part("good", "What is good", ["some.program"])
BAD = Part("bad", "What is bad", ["other.program"])


@pytest.fixture
def document(tmp_path):
    path = tmp_path / "benchmarks.md"
    path.write_text("# Benchmarks\n\nBefore.\n")
    return path


def test_a_section_has_the_date_the_machine_the_tables_and_the_failures():
    outcomes = [Outcome(GOOD, "| a |\n", "", 0.25), Outcome(BAD, "", "exit status 3", 0.0)]
    text = page.section(WHEN, "A machine.", outcomes)
    assert text.startswith("## 2026-11-22, 07:05 UTC\n\nA machine.\n")
    assert "### What is good\n\n| a |\n\n`python -m some.program`; other programs took 25%" in text
    assert text.endswith("Failed: bad: exit status 3.\n")
    assert "What is bad" not in text


def test_sections_follow_each_other(document):
    page.append(document, "## one\n")
    page.append(document, "## two\n")
    assert document.read_text() == "# Benchmarks\n\nBefore.\n\n## one\n\n## two\n"


def test_the_machine_is_described():
    text = machine.described(0.125)
    assert f"of {os.cpu_count()} cores" in text
    assert f"Python {sys.version.split()[0]}" in text
    for package in ("onnxruntime", "openvino", "ds-serve"):
        assert f"{package} " in text
    assert "other programs took 12% of the machine" in text


def test_a_short_soak_bounds_no_slope_and_a_whole_one_does():
    assert "memory_slope=1000" in parts(soak="3m")["soak"].words
    assert not any("memory_slope" in word for word in parts(soak="2h")["soak"].words)


def test_every_part_is_a_program_that_takes_a_file_for_its_table():
    for part in parts().values():
        words = part.command(Path("table.md"))
        assert words[1:3] == ["-m", part.words[0]]
        assert words[-2:] == ["--markdown", "table.md"]


def test_an_unknown_part_names_those_that_there_are(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["nonsense"])
    assert ended.value.code == 2
    assert "no part is called nonsense; there are mlp, hop, start-up" in capsys.readouterr().err


@pytest.mark.slow
def test_a_part_that_fails_is_named_and_the_others_go_on(document, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(environments, "CACHE", tmp_path / "nothing")
    assert main(["peers", "hop", "--repeats", "1", "--page", str(document)]) == 1
    printed = capfd.readouterr().out
    assert "failed: peers: no other server is installed" in printed
    text = document.read_text()
    assert "| in flight | ZeroMQ, messages/s | Unix stream, messages/s | ratio |" in text
    assert "Failed: peers: no other server is installed" in text
