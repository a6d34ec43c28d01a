"""The fraud and recommender scenarios: their requests, their checks, and a real server."""

from __future__ import annotations

import itertools
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from loadtests.models import table
from loadtests.models.reference import Reference
from loadtests.scenarios import fraud, recommender
from serving import Server

from ds_client import Client

SCENARIOS = {"fraud": fraud, "recommender": recommender}
INPUTS = {
    "fraud": {"window": ((1, 24, 16), np.float32)},
    "recommender": {
        "history": ((1, 50), np.int32),
        "candidates": ((1, 100), np.int32),
        "profile": ((1, 16), np.float32),
    },
}
SMALLEST = 9


@pytest.fixture(scope="module", params=sorted(SCENARIOS))
def name(request):
    return request.param


def some(name, seed, count=200):
    return list(itertools.islice(SCENARIOS[name].requests(seed), count))


def equal(ones, others):
    return all(
        np.array_equal(one[key], other[key])
        for one, other in zip(ones, others, strict=True)
        for key in one
    )


def test_requests_have_the_shapes_of_the_model(name):
    for inputs in some(name, 0):
        assert {key: (array.shape, array.dtype) for key, array in inputs.items()} == INPUTS[name]


def test_requests_are_the_same_for_a_seed_and_differ_from_user_to_user(name):
    assert equal(some(name, 3), some(name, 3))
    for seed in range(1, 40):
        assert not equal(some(name, 0, 20), some(name, seed, 20))


def test_requests_do_not_end_and_most_differ(name):
    requests = some(name, 0, 1000)
    assert len({tuple(a.tobytes() for a in inputs.values()) for inputs in requests}) > 200


def test_windows_are_full_and_slide():
    windows = [inputs["window"][0] for inputs in some("fraud", 0)]
    assert all(window.any(axis=1).all() for window in windows)
    next_of_card = windows[fraud.CARDS]
    np.testing.assert_array_equal(windows[0][1:], next_of_card[:-1])


def test_histories_begin_with_padding_and_items_follow_zipf():
    requests = some("recommender", 0, 2000)
    histories = np.concatenate([inputs["history"] for inputs in requests])
    present = histories != 0
    assert (np.diff(present.astype(int), axis=1) >= 0).all()
    assert present.any(axis=1).all()
    assert 0.2 < present.all(axis=1).mean() < 0.5
    candidates = np.concatenate([inputs["candidates"] for inputs in requests])
    assert candidates.min() > 0
    _, counts = np.unique(candidates, return_counts=True)
    counts = np.sort(counts)[::-1]
    slope = np.polyfit(np.log(np.arange(10, 500)), np.log(counts[10:500]), 1)[0]
    assert slope == pytest.approx(-recommender.EXPONENT, abs=0.1)
    rows = np.unique(candidates % (2 * 10**6))
    assert np.histogram(rows, bins=10, range=(0, 2 * 10**6))[0].min() > 0.08 * len(rows)


@pytest.fixture(scope="module")
def built(name, tmp_path_factory):
    """The scenario's model file, small, and ONNX Runtime with it."""
    folder = tmp_path_factory.mktemp("models")
    options = {"table_mb": SMALLEST} if name == "recommender" else {}
    given = SCENARIOS[name].model(folder, **options)
    model, _, path = given.partition("=")
    assert model == name
    before = Path(path).stat().st_mtime_ns
    assert SCENARIOS[name].model(folder, **options) == given
    assert Path(path).stat().st_mtime_ns == before
    return Reference(Path(path))


def test_the_check_knows_right_from_wrong(name, built):
    check = SCENARIOS[name].check
    one, other = some(name, 0, 2)
    outputs = built.run(one)
    ((key, right),) = outputs.items()
    assert check(one, outputs) is None
    assert "is off by" in check(one, built.run(other))
    assert "is off by" in check(one, {key: right + 0.001})
    assert "is off by nan" in check(one, {key: right * np.float32("nan")})
    assert "of the shape" in check(one, {key: np.concatenate([right, right])})
    assert f"no '{key}' among the outputs ['other']" in check(one, {"other": right})


@pytest.mark.parametrize(
    ("scenario", "options", "problem"),
    [
        (fraud, {"table_mb": 9}, "table_mb: the fraud scenario has no options"),
        (recommender, {"table": 9}, "table: the recommender has only the option table_mb"),
        (recommender, {"table_mb": "big"}, "table_mb=big: must be a number"),
        (recommender, {"table_mb": 1}, r"a table of 1 MB cannot be made: it has from 8\.4 MB"),
    ],
)
def test_wrong_options_are_named(scenario, options, problem, tmp_path):
    with pytest.raises(ValueError, match=problem):
        scenario.model(tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


def test_the_files_say_what_is_promised():
    folder = Path(fraud.__file__).parent
    found = {name: tomllib.loads((folder / f"{name}.toml").read_text()) for name in SCENARIOS}
    assert found["fraud"]["target"] == {"rate": 4000, "p99": 35}
    assert found["recommender"]["target"]["rate"] == 2000
    assert found["recommender"]["options"]["table_mb"] == table.DEFAULT_MB


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Both models; `beside` is the recommender with its table in a file of its own."""
    folder = tmp_path_factory.mktemp("served")
    models = [fraud.model(folder), recommender.model(folder, table_mb=SMALLEST)]
    table.write(folder / "beside.onnx", 2 * SMALLEST, external=True)
    models.append(f"beside={folder / 'beside.onnx'}")
    flags = [word for model in models for word in ("--model", model)]
    with Server(*flags, "--max-batch-size", "16", "--batch-delay-us", "5000") as server:
        yield server


SERVED = {"fraud": fraud, "recommender": recommender, "beside": recommender}


@pytest.mark.parametrize("model", SERVED)
def test_the_server_joins_requests_and_answers_as_onnxruntime_does(server, model):
    scenario = SERVED[model]

    def user(seed):
        with Client(server.grpc) as client:
            asked = itertools.islice(scenario.requests(seed), 25)
            return [scenario.check(inputs, client.infer(model, inputs)) for inputs in asked]

    with ThreadPoolExecutor(12) as users:
        complaints = [each for found in users.map(user, range(12)) for each in found]
    assert complaints == [None] * 300
    with Client(server.grpc) as client:
        (statistics,) = client.statistics(model)
        assert statistics.rows >= 300
        assert statistics.executions < statistics.rows
        assert client.config(model).max_batch_size == 16


@pytest.mark.parametrize("model", SERVED)
def test_a_request_may_have_several_rows(server, model):
    rows = list(itertools.islice(SERVED[model].requests(5), 7))
    joined = {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}
    with Client(server.grpc) as client:
        assert SERVED[model].check(joined, client.infer(model, joined)) is None
