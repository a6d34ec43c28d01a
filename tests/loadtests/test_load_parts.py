"""Scenarios, shapes, thresholds and slopes: what needs no server and no locust."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from loadtests.load import memory, scenario, shapes, thresholds
from loadtests.load.scenario import Scenario, ScenarioError
from loadtests.scenarios import chat, magika, mlp

MOMENTS = (0.0, 0.2, 0.39, 0.5, 0.61, 1.0)

GOOD = """
about = "a test"
requests = "mlp"
protocol = "http"
users = 10
"""


def written(folder: Path, more: str) -> str:
    path = folder / "one.toml"
    path.write_text(GOOD + more)
    return str(path)


@pytest.mark.parametrize(
    ("shape", "users"),
    [
        ("constant", [60, 60, 60, 60, 60, 60]),
        ("step", [10, 10, 60, 60, 60, 60]),
        ("spike", [10, 10, 10, 60, 10, 10]),
        ("soak", [10, 10, 10, 10, 10, 10]),
    ],
)
def test_users_follow_the_shape(shape: shapes.Shape, users: list[int]) -> None:
    assert [shapes.users(shape, moment, 1 / 6, 60) for moment in MOMENTS] == users


def test_a_low_load_still_has_a_user() -> None:
    assert shapes.users("soak", 0.5, 0.001, 10) == 1


@pytest.mark.parametrize(
    ("shape", "window"),
    [("constant", (5, 60)), ("soak", (5, 60)), ("step", (20, 60)), ("spike", (24, 36))],
)
def test_the_rate_is_taken_where_the_load_is_full(
    shape: shapes.Shape, window: tuple[float, float]
) -> None:
    assert shapes.counted(shape, 60, 5) == pytest.approx(window)


def test_a_soak_is_half_an_hour_at_half_load_unless_told() -> None:
    soak = scenario.changed(scenario.read("mlp"), {"shape": "soak", "duration": None, "rate": 100})
    assert (soak.seconds, soak.low_share) == (1800, 0.5)
    assert scenario.changed(soak, {"duration": scenario.seconds("2h")}).seconds == 7200


def test_the_low_load_is_in_the_unit_of_the_full_one(tmp_path: Path) -> None:
    assert scenario.read(written(tmp_path, "rate = 3000\nlow = 500")).low_share == 500 / 3000
    assert scenario.read(written(tmp_path, "low = 5")).low_share == 0.5


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("1.5s", 1.5), ("30m", 1800), ("2h", 7200)]
)
def test_durations(text: str, seconds: float) -> None:
    assert scenario.seconds(text) == seconds


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("speed = 3", "speed"),
        ("rate = -1", "rate"),
        ('shape = "square"', "square"),
        ("[require]\np42 = 3", "no threshold 'p42'; there are rate, tokens, failed"),
        ("low = 11", "low = 11 is above the full load, 10"),
        ("duration = 4\nwarmup = 4", "leaves nothing"),
        ("users = 3", "one.toml"),
    ],
)
def test_what_is_wrong_with_a_scenario_is_said(tmp_path: Path, more: str, says: str) -> None:
    with pytest.raises(ScenarioError, match=says):
        scenario.read(written(tmp_path, more))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"requests": "nothing"}, "no requests = 'nothing'; there are chat, fraud"),
        ({"requests": "chat"}, "protocol = 'http' does not fit requests = 'chat'; chat does"),
        ({"protocol": "chat"}, "http, grpc or grpc-stream does"),
        ({"users": 0}, "users"),
    ],
)
def test_what_is_wrong_with_a_change_is_said(given: dict[str, object], says: str) -> None:
    with pytest.raises(ScenarioError, match=says):
        scenario.changed(scenario.read("mlp"), given)


def test_an_unknown_scenario_names_those_that_there_are() -> None:
    with pytest.raises(ScenarioError, match="no scenario 'nope'; there are chat, fraud, magika"):
        scenario.read("nope")


def test_the_command_line_changes_single_thresholds() -> None:
    before = scenario.read("mlp")
    after = scenario.changed(before, {"require": scenario.pairs(["p95=7.5", "rate=9"])})
    assert after.require == before.require | {"p95": 7.5, "rate": 9}
    assert after.target == before.target


@pytest.mark.parametrize("text", ["p99", "=3", "p99:3"])
def test_a_setting_is_a_name_and_a_value(text: str) -> None:
    with pytest.raises(ScenarioError, match="not of the form NAME=VALUE"):
        scenario.pairs([text])


@pytest.mark.parametrize("name", scenario.names())
def test_every_scenario_can_be_read_and_makes_requests(name: str) -> None:
    one: Scenario = scenario.read(name)
    assert one.require.keys() | one.target.keys(), "a scenario without thresholds cannot fail"
    module = scenario.module(one.requests)
    assert callable(module.model)
    assert callable(module.check)
    assert callable(module.prompts if one.protocol == "chat" else module.requests)


def test_required_thresholds_decide_and_targets_do_not() -> None:
    seen = {"rate": 90.0, "p99": 30.0, "failed": 0.0}
    held = thresholds.judge(seen, {"rate": 80}, {"rate": 100, "p99": 20})
    assert thresholds.passed(held)
    assert [(v.name, v.required, v.verdict) for v in held] == [
        ("rate", True, "pass"),
        ("failed", True, "pass"),
        ("rate", False, "not reached"),
        ("p99", False, "not reached"),
    ]
    assert [v.share for v in held[2:]] == pytest.approx([0.9, 20 / 30])
    assert not thresholds.passed(thresholds.judge(seen, {"rate": 91}, {}))
    assert not thresholds.passed(thresholds.judge(seen, {"p99": 29}, {}))


def test_failed_requests_fail_a_run_that_says_nothing_of_them() -> None:
    assert thresholds.passed(thresholds.judge({"failed": 0.001}, {}, {}))
    assert not thresholds.passed(thresholds.judge({"failed": 0.0011}, {}, {}))
    assert thresholds.passed(thresholds.judge({"failed": 0.1}, {"failed": 0.2}, {}))


def test_what_was_not_measured_does_not_pass() -> None:
    (failed, slope) = thresholds.judge({"failed": 0.0}, {"memory_slope": 5}, {})
    assert failed.met
    assert not slope.met
    assert slope.cells()[2:] == ("not measured", "", "FAIL")


def test_the_slope_is_that_of_the_line_through_the_samples() -> None:
    seconds = np.arange(0, 1800, 5.0)
    noise = np.random.default_rng(0).normal(0, 2, len(seconds))
    found = memory.least_squares(list(seconds), list(500 + 12 * seconds / 3600 + noise))
    assert found is not None
    assert abs(found.slope - 12) < 4 * found.error
    assert 0 < found.error < 2
    flat = memory.least_squares(list(seconds), [7.0] * len(seconds))
    assert flat == memory.Slope(0, 0)
    assert memory.least_squares([0, 5], [1, 2]) is None


def test_the_slope_leaves_out_the_start() -> None:
    sampler = memory.Sampler(1)
    sampler.times = [float(second) for second in range(100)]
    sampler.sizes = [10.0 * second if second < 10 else 100.0 for second in range(100)]
    assert sampler.slope() == memory.Slope(0, 0)


@pytest.fixture
def grower() -> Iterator[subprocess.Popen[str]]:
    """A process whose child takes 64 MiB more when it is told to."""
    child = "import sys; input(); kept = b'x' * 2**26; print('grown', flush=True); input()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.communicate("\n", timeout=30)


def test_memory_is_that_of_the_whole_family(grower: subprocess.Popen[str]) -> None:
    assert grower.stdin is not None
    assert grower.stdout is not None
    sampler = memory.Sampler(grower.pid)
    sampler.sample()
    grower.stdin.write("\n")
    grower.stdin.flush()
    assert grower.stdout.readline() == "grown\n"
    sampler.sample()
    before, after = sampler.sizes
    assert 60 < after - before < 100


def test_the_mlp_knows_right_answers_from_wrong() -> None:
    inputs = next(mlp.requests(0))
    (right,) = mlp._session().run(None, inputs)
    assert mlp.check(inputs, {"y": right}) is None
    assert mlp.check(inputs, {"y": right + 1}) == "y is off by 1"
    assert mlp.check(inputs, {"y": right[:, :4]}) == "y is [1, 4]"
    assert mlp.check(inputs, {}) == "y is missing"


def test_users_of_other_seeds_send_other_requests() -> None:
    first, again, other = (next(mlp.requests(seed))["x"] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    prompts = [next(chat.prompts(seed)) for seed in (1, 1, 2)]
    assert prompts[0] == prompts[1] != prompts[2]


def test_magika_knows_right_answers_from_wrong() -> None:
    inputs = next(magika.requests(0))
    labels = magika._config()["target_labels_space"]
    want = magika._labels()[inputs["bytes"].tobytes()]
    scores = np.zeros((1, len(labels)), np.float32)
    scores[0, labels.index(want)] = 1
    assert magika.check(inputs, {"target_label": scores}) is None
    wrong = np.roll(scores, 1)
    assert f"a file of type {want} is called" in str(magika.check(inputs, {"target_label": wrong}))


def test_chats_are_mostly_short_and_their_answers_within_bounds() -> None:
    source = chat.prompts(0)
    lengths = [len(next(source)["messages"][0]["content"]) for _ in range(200)]
    assert 20 < sum(length > 1000 for length in lengths) < 80
    prompt = {"max_tokens": 8}
    assert chat.check(prompt, "Yes.", 8) is None
    assert chat.check(prompt, " ", 1) == "there is no text in it"
    assert chat.check(prompt, "Yes, and", 9) == "9 tokens where 8 were allowed"


def test_targets_are_required_too_of_a_strict_run() -> None:
    seen = {"rate": 90.0, "failed": 0.0}
    assert thresholds.passed(thresholds.judge(seen, {"rate": 80}, {"rate": 85}, strict=True))
    assert not thresholds.passed(thresholds.judge(seen, {"rate": 80}, {"rate": 100}, strict=True))
