from __future__ import annotations

import io

import pytest
from ds_serve.catalogue import names, progress_on
from ds_serve.catalogue.cli import main


def test_list_names_every_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    said = capsys.readouterr().out
    assert all(f"{name}\n" in said for name in names())


def test_a_wrong_name_is_one_clear_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "magica"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "error: no model named 'magica' in the catalogue; did you mean magika?\n"


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


def test_a_log_gets_a_line_for_every_tenth() -> None:
    stream = io.StringIO()
    with progress_on(stream) as progress:
        for done in range(0, 2_000_001, 10_000):
            progress.downloaded(done, 2_000_000)
    assert len(stream.getvalue().splitlines()) == 10
    assert stream.getvalue().endswith("2.0 of 2.0 MB\n")
