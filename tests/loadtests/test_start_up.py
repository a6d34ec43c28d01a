"""How starts are measured, on the smallest model."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from loadtests.perf_analyzer import BenchmarkError
from loadtests.start_up import page_cache, results
from loadtests.start_up.__main__ import main
from loadtests.start_up.measure import ENGINE, GATEWAY, REST, Start
from loadtests.start_up.results import Row
from loadtests.start_up.subjects import ONNX, Subject

MIB = 2**20


@pytest.fixture
def subject(tmp_path):
    file = tmp_path / "model.onnx"
    file.write_bytes(bytes(MIB))
    return Subject("tiny", ONNX, file)


def test_a_forgotten_file_is_read_from_the_disk(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(os.urandom(2 * MIB))
    assert page_cache.cached(file) == 1
    try:
        page_cache.forget([file])
    except BenchmarkError:
        pytest.skip("a memory file system")
    assert page_cache.cached(file) == 0
    file.read_bytes()
    assert page_cache.cached(file) == 1


def test_a_file_that_stays_in_memory_is_no_cold_start():
    if not Path("/dev/shm").is_dir():
        pytest.skip("no memory file system")
    file = Path(f"/dev/shm/ds-serve-test-{os.getpid()}")
    file.write_bytes(bytes(MIB))
    try:
        with pytest.raises(BenchmarkError, match=r"no cold start: 100% of .* stays"):
            page_cache.forget([file])
    finally:
        file.unlink()


def test_large_weights_beside_the_file_count(tmp_path, subject):
    (tmp_path / "model.onnx.data").write_bytes(bytes(3 * MIB))
    whole = Subject("tiny", ONNX, subject.file)
    assert whole.size == 4 * MIB
    assert len(whole.files) == 2


def test_rows_are_compared_with_the_library_alone(subject):
    served = Start(2.0, 2.5, 0.3, {ENGINE: 30 * MIB, GATEWAY: 50 * MIB, REST: 20 * MIB})
    alone = Start(0.4, 0.5, 0.2, {ENGINE: 25 * MIB})
    cold = Start(3.0, 3.5, 1.3, served.memory)
    rows = [
        Row(subject, "ds-serve", [cold], [served]),
        Row(subject, "ONNX Runtime", [alone], [alone]),
    ]
    ours, theirs = results.pairs(rows)
    assert ours == ("tiny", "1", "ds-serve", "3.00", "2.00", "0.30", "2.50",
                    "30", "50", "20", "30.0", "5.00", "4.00")  # fmt: skip
    assert theirs[-6:] == ("25", "-", "-", "25.0", "1.00", "1.00")
    assert len(results.markdown(rows).splitlines()) == 4


def test_an_unknown_model_names_those_that_there_are(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--models", "mlp,nonsense"])
    assert ended.value.code == 2
    assert "nonsense: there are mlp, silero-vad" in capsys.readouterr().err


@pytest.mark.slow
def test_a_model_is_started_both_ways(tmp_path, monkeypatch, capsys):
    table = tmp_path / "table.md"
    assert main(["--models", "mlp", "--repeats", "1", "--markdown", str(table)]) == 0
    note, _, _, _, ours, theirs = table.read_text().splitlines()
    assert "the model's files out of the page cache" in note
    cells = [cell.strip() for cell in ours.strip("|").split("|")]
    assert cells[:3] == ["mlp", "0.04", "ds-serve"]
    # Loading is part of being ready, and each process has some memory.
    assert 0 < float(cells[5]) < float(cells[4]) < float(cells[6])
    assert all(int(size) > 5 for size in cells[7:10])
    assert "ONNX Runtime" in theirs
