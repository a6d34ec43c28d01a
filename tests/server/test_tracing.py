"""Trace files: valid at every moment, numbered through, shared by several writers."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from ds_engines.errors import ConfigError
from ds_engines.spec import ModelSpec
from ds_serve import tracing
from ds_serve.settings import Settings
from ds_serve.tracing import TIMESTAMPS, Trace, Tracer, TraceSettings

SPEC = ModelSpec("mlp", "onnxruntime", Path("mlp.onnx"), version="3")


def traced(request_id: str = "") -> Trace:
    trace = Trace("HTTP_RECV_START")
    trace.mark("REQUEST_START")
    trace.answered(SPEC, request_id, [1, 2, 3, 4, 5])
    return trace


def write_many(path: Path) -> None:
    for _ in range(20):
        tracing.append(path, [traced(), traced()])


def test_an_array_grows_in_place(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    tracing.create(path)
    assert json.loads(path.read_text()) == []
    tracing.append(path, [traced("first")])
    tracing.append(path, [traced(), traced()])
    about, times, *rest = json.loads(path.read_text())
    assert about == {"id": 1, "model_name": "mlp", "model_version": 3, "request_id": "first"}
    assert times["id"] == 1
    names = [mark["name"] for mark in times["timestamps"]]
    assert names == ["HTTP_RECV_START", "REQUEST_START", *tracing.IN_WORKER, "REQUEST_END"]
    assert [record["id"] for record in rest] == [2, 2, 3, 3]
    assert "request_id" not in rest[0]


def test_several_processes_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    tracing.create(path)
    writers = [subprocess.Popen([sys.executable, __file__, path]) for _ in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    records = json.loads(path.read_text())
    assert [r["id"] for r in records if "model_name" in r] == list(range(1, 121))
    assert [r["id"] for r in records if "timestamps" in r] == list(range(1, 121))


def test_a_file_that_was_taken_away_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    tracing.append(path, [traced()])
    assert len(json.loads(path.read_text())) == 2


def test_one_of_so_many_until_enough() -> None:
    settings = TraceSettings("unused", TIMESTAMPS, trace_rate=3, trace_count=2)
    tracer = Tracer(settings)
    found = [tracer.on and tracer.begin("HTTP_RECV_START") is not None for _ in range(10)]
    assert [index for index, each in enumerate(found) if each] == [2, 5]
    assert not tracer.on
    tracer.update(settings)
    assert tracer.on


@pytest.mark.parametrize(
    "settings",
    [
        TraceSettings(),
        TraceSettings("file", tracing.OFF),
        TraceSettings("", TIMESTAMPS),
        TraceSettings("file", TIMESTAMPS, trace_count=0),
    ],
)
def test_off(settings: TraceSettings) -> None:
    assert not Tracer(settings).on


async def test_a_file_for_every_so_many(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    (tmp_path / "trace.json.0").write_text("of another run")
    tracer = Tracer(TraceSettings(str(path), TIMESTAMPS, 1, log_frequency=2))
    for _ in range(3):
        tracer.keep(traced())
    tracer.flush()
    await asyncio.get_running_loop().shutdown_default_executor()
    found = sorted(file.name for file in tmp_path.iterdir())
    assert found == ["trace.json.0", "trace.json.1", "trace.json.2"]
    counts = [len(json.loads(path.with_suffix(f".json.{n}").read_text())) for n in (1, 2)]
    assert sorted(counts) == [2, 4]


async def test_what_no_worker_answered_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    tracer = Tracer(TraceSettings(str(path), TIMESTAMPS, 1))
    tracer.keep(Trace("HTTP_RECV_START"))
    tracer.flush()
    assert not path.exists()


async def test_a_disk_that_refuses_ends_the_tracing(tmp_path: Path) -> None:
    tracer = Tracer(TraceSettings(str(tmp_path), TIMESTAMPS, 1))
    assert tracer.on
    tracer.keep(traced())
    tracer.flush()
    assert not tracer.on


def test_a_file_that_cannot_be_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--trace-file .*nowhere/t.json cannot be written"):
        tracing.create(tmp_path / "nowhere" / "t.json")


def test_settings_of_the_whole_server(tmp_path: Path) -> None:
    assert Settings().tracing.trace_level == tracing.OFF
    told = Settings(trace_file="t.json", trace_count=5, gateways=2).tracing
    assert (told.trace_level, told.trace_count) == (TIMESTAMPS, 5)
    assert Path(told.trace_file).is_absolute()
    with pytest.raises(ConfigError, match="--trace-rate is 0; it must be 1 or more"):
        Settings(trace_rate=0).check()


if __name__ == "__main__":
    write_many(Path(sys.argv[1]))
