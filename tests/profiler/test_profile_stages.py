"""Trace files read, and what is made of their times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ds_engines.layers import Layer, LayerProfile
from ds_profile import traces
from ds_profile.advice import Context, advise
from ds_profile.errors import ProfileError
from ds_profile.stages import Stages, summarise
from ds_profile.traces import Trace

HTTP = [
    "HTTP_RECV_START", "HTTP_RECV_END", "REQUEST_START", "QUEUE_START", "COMPUTE_START",
    "COMPUTE_INPUT_END", "COMPUTE_OUTPUT_START", "COMPUTE_END", "REQUEST_END",
    "HTTP_SEND_START", "HTTP_SEND_END",
]  # fmt: skip
ORDER = [
    "receive", "parse", "hand over", "queue", "join", "compute", "split", "hand back", "encode",
    "send",
]  # fmt: skip


def trace(steps: dict[str, int], request_id: str = "", begin: int = 1000) -> Trace:
    """Of a request whose stages took so many microseconds each, 1 where nothing is said."""
    times, now = {HTTP[0]: begin}, begin
    for name, stage in zip(HTTP[1:], ORDER, strict=True):
        now += steps.get(stage, 1) * 1000
        times[name] = now
    return Trace("mlp", 1, request_id, times)


def stages(steps: dict[str, int], count: int = 10) -> Stages:
    (found,) = summarise([trace(steps) for _ in range(count)])
    return found


def write(path: Path, records: Any) -> Path:
    path.write_text(json.dumps(records))
    return path


def test_as_triton_writes_it(tmp_path: Path) -> None:
    """One record for each timestamp, in any order; an ensemble's part has no protocol."""
    times = {name: 1000 * index for index, name in enumerate(HTTP)}
    marks = [{"id": 7, "timestamps": [{"name": n, "ns": ns}]} for n, ns in times.items()]
    inner = [
        {"id": 8, "model_name": "part", "model_version": 2, "parent_id": 7},
        *({"id": 8, "timestamps": [{"name": n, "ns": times[n]}]} for n in HTTP[2:9]),
    ]
    about = {"id": 7, "model_name": "whole", "model_version": 1, "request_id": "r"}
    found = traces.read([write(tmp_path / "t.json", [about, *reversed(marks), *inner])])
    assert [(t.model, t.version, t.request_id, t.protocol) for t in found] == [
        ("whole", 1, "r", "HTTP"),
        ("part", 2, "", "?"),
    ]
    assert found[0].durations() == dict.fromkeys(ORDER, 1000)
    assert sum(found[0].durations().values()) == times[HTTP[-1]] - times[HTTP[0]]


def test_grpc_has_no_receiving(tmp_path: Path) -> None:
    names = ["GRPC_WAITREAD_START", "GRPC_WAITREAD_END", *HTTP[2:9], "GRPC_SEND_START",
             "GRPC_SEND_END"]  # fmt: skip
    marks = [{"name": name, "ns": 1000 * index} for index, name in enumerate(names)]
    records = [{"id": 1, "model_name": "m", "model_version": 1}, {"id": 1, "timestamps": marks}]
    (found,) = traces.read([write(tmp_path / "t.json", records)])
    assert found.protocol == "GRPC"
    assert list(found.durations()) == ORDER[1:]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "is no trace file"),
        ("{}", "must hold a JSON array"),
        ('[{"no": 1}]', "no proper 'id'"),
        ('[{"id": 1, "timestamps": [{"name": "x"}]}]', "no proper 'ns'"),
    ],
)
def test_what_is_no_trace_file(tmp_path: Path, content: str, complaint: str) -> None:
    path = tmp_path / "t.json"
    path.write_text(content)
    with pytest.raises(ProfileError, match=complaint):
        traces.read([path])


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"nothing\.json cannot be read: No such file"):
        traces.read([tmp_path / "nothing.json"])


def test_shares_add_up_with_the_clients_view() -> None:
    many = [trace({"queue": 40, "compute": 30 + i}, str(i)) for i in range(100)]
    total = [sum(t.durations().values()) for t in many]
    waits = {str(i): ns + 20_000 for i, ns in enumerate(total)}
    (found,) = summarise([*many, trace({}, "of another load")], waits)
    assert found.count == 100
    assert sum(row.share for row in found.rows) == pytest.approx(1)
    assert found.mean("network") == pytest.approx(20)
    assert found.mean("compute") == pytest.approx(79.5)
    assert found.total.percentiles[0] == pytest.approx(sum(waits.values()) / 100 / 1000)


def test_a_percentile_is_told_by_requests_near_it() -> None:
    many = [trace({"compute": 10}) for _ in range(98)] + [trace({"queue": 5000})] * 2
    (found,) = summarise(many)
    by_label = {typical.label: typical for typical in found.typical}
    assert by_label["p50"].stages["queue"] == 1
    assert by_label["p99"].stages["queue"] > 2000
    assert by_label["mean"].total == pytest.approx(found.total.mean)


def test_models_and_protocols_apart() -> None:
    other = trace({})
    other.model = "other"
    found = summarise([other, trace({}), trace({})])
    assert [(s.model, s.count) for s in found] == [("mlp", 2), ("other", 1)]


def test_advice_on_a_full_queue() -> None:
    context = Context(batch_rows=8.0, max_batch_size=8)
    (said, *_) = advise(stages({"queue": 820, "compute": 100}), context, None)
    assert said.startswith("88% of the time is spent waiting in the queue while batches are full")
    assert "raise max_batch_size" in said


def test_advice_on_a_delay_that_brings_no_company() -> None:
    context = Context(batch_rows=1.2, max_batch_size=64, delay_us=5000)
    (said, *_) = advise(stages({"queue": 5000, "compute": 100}), context, None)
    assert "max_queue_delay_microseconds (5000)" in said
    assert "lower the delay" in said


def test_advice_on_an_engine_that_is_behind() -> None:
    (said, *_) = advise(stages({"queue": 5000, "compute": 100}), Context(), None)
    assert "instance_group.count" in said


def test_advice_on_the_model() -> None:
    layers = LayerProfile("onnxruntime", 1, 100.0, (Layer("a", "Conv", 90), Layer("b", "Mul", 10)))
    model, layer = advise(stages({"compute": 900}), Context(), layers)
    assert "is the model itself" in model
    assert "90% of the time in the layers is Conv" in layer


def test_advice_on_the_way_and_on_failures() -> None:
    failed, way = advise(stages({"parse": 300, "encode": 300}), Context(errors=3), None)
    assert failed.startswith("3 requests failed")
    assert "gateway" in way


def test_no_advice_where_nothing_stands_out() -> None:
    even = {"queue": 10, "compute": 10, "join": 3, "parse": 5, "network": 5}
    assert advise(stages(even), Context(), None) == [
        "No stage stands out: the time is spread over all of them."
    ]
