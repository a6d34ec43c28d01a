from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ds_serve.catalogue import names, progress_on
from ds_serve.catalogue.cli import main


def test_list_names_every_model_and_what_is_fetched(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DS_SERVE_CACHE", str(tmp_path))
    model = tmp_path / "catalogue/magika/magika-1.0.3/model.onnx"
    model.parent.mkdir(parents=True)
    model.touch()
    assert main(["list", "--catalogue"]) == 0
    said = capsys.readouterr().out
    assert all(f"{name}\n" in said for name in names())
    assert said.count("MB to download") == len(names()) - 1
    assert f"fetched: {model}\n" in said


def test_a_wrong_name_is_one_clear_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "magica"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: no model named 'magica' in the catalogue; did you mean magika? ")
    assert len(err.splitlines()) == 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with progress_on(stream) as progress:
        progress.note("Fetching made")
        progress.downloaded(500_000, 2_000_000)
    assert "Fetching made" in stream.getvalue()
    assert "0.5/2.0 MB" in stream.getvalue()


def test_a_terminal_where_nothing_is_fetched_stays_clean() -> None:
    stream = Terminal()
    with progress_on(stream):
        pass
    assert stream.getvalue() == ""


def test_a_log_gets_a_line_for_every_tenth() -> None:
    stream = io.StringIO()
    with progress_on(stream) as progress:
        for _ in ("one model", "another"):
            for done in range(0, 2_000_001, 10_000):
                progress.downloaded(done, 2_000_000)
    assert len(stream.getvalue().splitlines()) == 20
    assert stream.getvalue().endswith("2.0 of 2.0 MB\n")


def test_what_a_program_reads_is_not_part_of_the_bar(tmp_path: Path) -> None:
    """`$(ds-models pull ...)` on a terminal: only stderr is one."""
    source = tmp_path / "net.onnx"
    source.write_bytes(b"net")
    ours, theirs = os.openpty()
    try:
        done = subprocess.run(
            [Path(sys.executable).with_name("ds-models"), "pull", source],
            stdout=subprocess.PIPE, stderr=theirs, text=True, check=False,
            env=os.environ | {"DS_SERVE_CACHE": str(tmp_path / "cache"), "TERM": "xterm"},
        )  # fmt: skip
        shown = os.read(ours, 65536).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert Path(done.stdout.removesuffix("\n")).read_bytes() == b"net"
    assert "3/3 bytes" in shown
