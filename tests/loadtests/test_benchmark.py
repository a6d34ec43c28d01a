"""The parts of the benchmark; the benchmark itself takes minutes and is run by hand."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from loadtests import direct, model, report
from loadtests.perf_analyzer import BenchmarkError, Point, Tool, find, parse

# As perf_analyzer 2.51 writes it.
REPORT = """\
Concurrency,Inferences/Second,Client Send,Network+Server Send/Recv,Server Queue,\
Server Compute Input,Server Compute Infer,Server Compute Output,Client Recv,\
p50 latency,p90 latency,p95 latency,p99 latency
4,1541.36,4,1514,819,19,120,31,2,2180,3838,4698,6486"""
LINES = [
    report.Line("engine alone", 1, (Point(1000, 900, 1100),)),
    report.Line("HTTP", 4, (Point(300, 2000, 9000), Point(100, 4000, 9000), Point(200, 3000, 1))),
]


@pytest.fixture
def mlp(tmp_path):
    path = tmp_path / "mlp.onnx"
    model.write(path)
    return path


def test_the_model_is_tiny_and_its_rows_are_independent(mlp):
    assert 37_000 < mlp.stat().st_size < 38_000
    session = onnxruntime.InferenceSession(mlp)
    rows = np.random.default_rng(1).random((5, 64), dtype=np.float32)
    (together,) = session.run(None, {"x": rows})
    assert together.shape == (5, 8)
    alone = [session.run(None, {"x": row[None]})[0][0] for row in rows]
    np.testing.assert_allclose(together, alone, rtol=1e-4)


def test_the_engine_alone_is_measured_in_its_own_process(mlp):
    point = direct.measure(mlp, batch=4, seconds=0.2)
    assert point.rate > 0
    assert 0 < point.p50 <= point.p99


def test_a_model_that_does_not_load_is_no_measurement(tmp_path):
    (tmp_path / "mlp.onnx").write_bytes(b"nothing")
    with pytest.raises(BenchmarkError, match="ONNX Runtime alone failed"):
        direct.measure(tmp_path / "mlp.onnx", batch=1, seconds=0.1)


def test_a_report_is_understood():
    assert parse(REPORT) == Point(rate=1541.36, p50=2180, p99=6486)


@pytest.mark.parametrize("text", ["", "a,b\n1,2", REPORT.splitlines()[0], REPORT + "\n4,1"])
def test_a_report_without_one_measurement_is_an_error(text):
    with pytest.raises(BenchmarkError, match="not understood"):
        parse(text)


def test_a_report_of_nothing_is_an_error():
    with pytest.raises(BenchmarkError, match="nothing was answered"):
        parse(REPORT.replace("1541.36", "0"))


def program(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_a_tool_that_lacks_a_library_says_what_to_install(tmp_path, monkeypatch):
    text = "echo 'error while loading shared libraries: libb64.so.0d' >&2; exit 127"
    monkeypatch.setenv("PERF_ANALYZER", str(program(tmp_path / "tool", text)))
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("loadtests.perf_analyzer.CACHE", tmp_path / "none")
    with pytest.raises(BenchmarkError, match=r"libb64\.so\.0d(.|\n)*package libb64-0d"):
        find()


def test_a_missing_tool_says_how_to_fetch_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("loadtests.perf_analyzer.CACHE", tmp_path / "none")
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    with pytest.raises(BenchmarkError, match=r"run python -m loadtests.perf_analyzer to fetch it"):
        find()


def test_a_tool_that_fails_is_no_measurement(tmp_path):
    tool = Tool(program(tmp_path / "tool", "echo 'connection refused'; exit 1"), "0")
    with pytest.raises(
        BenchmarkError, match=r"failed over HTTP at 16 conn(.|\n)*connection refused"
    ):
        tool.measure("HTTP", "127.0.0.1:1", "mlp", 16, 0.1)


def test_a_tool_that_ends_well_without_a_report_is_no_measurement(tmp_path):
    tool = Tool(program(tmp_path / "tool", "exit 0"), "0")
    with pytest.raises(BenchmarkError, match="failed over gRPC stream"):
        tool.measure("gRPC stream", "127.0.0.1:1", "mlp", 1, 0.1)


def test_lines_show_medians_and_extremes():
    assert LINES[1].cells(LINES[0]) == ("HTTP", "4", "200", "100", "300", "3.00", "9.00", "0.2")


def test_the_table_goes_between_its_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- mlp: begin -->\nold\n<!-- mlp: end -->\nafter\n")
    text = report.markdown(LINES, "About.")
    report.write(page, "mlp", text)
    report.write(page, "mlp", text)
    assert page.read_text() == (f"before\n<!-- mlp: begin -->\n{text}\n<!-- mlp: end -->\nafter\n")
    assert "| engine alone | 1 | 1,000 |" in text
    with pytest.raises(BenchmarkError, match="has no place for the table"):
        report.write(page, "other", text)


def test_the_machine_is_described():
    about = report.machine({"perf_analyzer": "2.51.0"})
    assert "cores for server, engine and load generator together" in about
    assert "perf_analyzer 2.51.0" in about
    assert onnxruntime.__version__ in about
