"""What tuning tries, how it goes on from a file, and how it is written down."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ds_engines import config_pbtxt
from ds_engines.spec import BatchPolicy, ModelSpec, TensorSpec
from ds_profile.errors import ProfileError
from ds_profile.server import Model
from ds_profile.tune.command import Final, winner
from ds_profile.tune.measure import Goal, Score, Watch
from ds_profile.tune.search import Hopeless, Search
from ds_profile.tune.space import Candidate, Space, laid_out, space_of, written
from ds_serve import models
from ds_serve.models import ModelSource
from ds_serve.supervisor import cpus

INPUT = TensorSpec("x", "FP32", (-1, 4), 0)
OUTPUT = TensorSpec("y", "FP32", (-1, 4), 0)


def source(tmp_path: Path, name: str = "m") -> ModelSource:
    return ModelSource(name, "tensor", "onnxruntime", tmp_path / f"{name}.onnx", "why")


def spec(most: int, delay: int = 0, slots: int = 1) -> ModelSpec:
    policy = BatchPolicy(most, delay)
    inputs, outputs = (INPUT,), (OUTPUT,)
    return ModelSpec(
        "m", "onnxruntime", Path("m.onnx"), inputs=inputs, outputs=outputs, batch=policy,
        slots=slots,
    )  # fmt: skip


def space(most: int = 64, latency_ms: float = 2.0, in_flight: int = 0, **default: int) -> Space:
    model = Model("m", (INPUT,), config_pbtxt.describe(spec(most, **default)))
    return space_of(
        model,
        None,
        latency_ms=latency_ms,
        rows_in_flight=in_flight,
        most_instances=2,
        most_gateways=2,
    )


# ---- the space


def test_the_default_is_among_the_values() -> None:
    found = space(most=48, delay=30, slots=5)
    assert found.default == Candidate(48, 30, 5, gateways=cpus.gateways(0))
    assert found.values["max_batch_size"] == (1, 2, 4, 8, 16, 32, 48, 64, 128, 256)
    assert found.values["instances"] == (1, 2, 5)
    assert found.values["delay_us"] == (0, 30, 100, 250, 500, 1000)
    assert found.candidate(found.places(found.default)) == found.default


def test_no_larger_batch_than_can_come_together() -> None:
    assert space(in_flight=6).values["max_batch_size"] == (1, 2, 4, 8, 64)


def test_a_model_that_is_not_batched_has_only_instances_and_gateways() -> None:
    found = space(most=0)
    assert set(found.values) == {"instances", "gateways"}
    assert found.size == 4


# ---- the file


def applied(text: str, path: Path) -> ModelSpec:
    path.write_text(text)
    return config_pbtxt.apply(spec(64), config_pbtxt.read(path), "test")


def test_what_is_written_is_what_is_loaded(tmp_path: Path) -> None:
    text = written(None, Candidate(16, 500, 3, 2), batched=True)
    found = applied(text, tmp_path / "config.pbtxt")
    assert (found.batch.max_batch_size, found.batch.max_delay_us, found.slots) == (16, 500, 3)


def test_what_else_a_configuration_says_stays(tmp_path: Path) -> None:
    path = tmp_path / "config.pbtxt"
    path.write_text("""
        backend: "onnxruntime"
        max_batch_size: 128
        dynamic_batching {
          preferred_batch_size: [8, 64]
          max_queue_delay_microseconds: 900
          default_queue_policy { max_queue_size: 77 }
        }
        instance_group [{ count: 1, kind: KIND_CPU }, { count: 1, kind: KIND_CPU }]
    """)
    text = written(config_pbtxt.read(path), Candidate(32, 0, 4, 1), batched=True)
    found = applied(text, path)
    assert found.batch == BatchPolicy(32, 0, (8,), 77)
    assert found.slots == 4
    assert "KIND_CPU" in text
    assert 'backend: "onnxruntime"' in text


def test_a_model_said_to_be_unbatched_stays_so(tmp_path: Path) -> None:
    path = tmp_path / "config.pbtxt"
    path.write_text("max_batch_size: 0")
    base = config_pbtxt.read(path)
    found = applied(written(base, Candidate(0, 0, 2, 1), batched=False), path)
    assert found.batch.max_batch_size == 0
    assert found.slots == 2


@pytest.mark.parametrize("version", ["1", "7"])
def test_a_model_is_laid_out_with_another_configuration(tmp_path: Path, version: str) -> None:
    home = tmp_path / "model" / version
    home.mkdir(parents=True)
    onnx = bytes.fromhex("3a00")  # an empty graph
    (home / "model.onnx").write_bytes(onnx)
    (home / "weights.bin").write_bytes(b"beside it")
    (home / "config.pbtxt").write_text("max_batch_size: 3")
    given = models.resolve(str(tmp_path / "model"))
    argument = laid_out(given, "max_batch_size: 5", tmp_path / "other")
    found = models.resolve(argument)
    assert (found.name, found.version) == (given.name, given.version) == ("model", version)
    assert found.config is not None
    assert found.config.read_text() == "max_batch_size: 5"
    assert found.artifact.with_name("weights.bin").read_bytes() == b"beside it"
    assert (home / "config.pbtxt").read_text() == "max_batch_size: 3"


# ---- the trials


def goal(tmp_path: Path) -> Goal:
    return Goal(source(tmp_path), latency_ms=10.0)


def rate_of(candidate: Candidate) -> float:
    """Best at a batch of 16, two instances and two gateways."""
    distance = abs(candidate.max_batch_size - 16) + candidate.delay_us / 10
    return 1000 * candidate.instances + 200 * candidate.gateways - distance


class Machine:
    """Stands for a server: what each candidate reaches is known."""

    def __init__(self, fail_at: int = 0) -> None:
        self.measured: list[Candidate] = []
        self.told: list[tuple[int, Candidate, Score | None]] = []
        self._fail_at = fail_at

    def measure(self, candidate: Candidate, watch: Watch) -> Score:
        self.measured.append(candidate)
        if len(self.measured) == self._fail_at:
            raise KeyboardInterrupt
        rate = rate_of(candidate)
        watch(0, rate, 5.0)
        return Score(rate, 20.0 if candidate.delay_us == 1000 else 5.0, 8)

    def tell(self, number: int, candidate: Candidate, score: Score | None) -> None:
        self.told.append((number, candidate, score))


def test_the_default_comes_first_and_nothing_twice(tmp_path: Path) -> None:
    machine = Machine()
    search = Search(goal(tmp_path), space(), None)
    search.run(25, machine.measure, machine.tell)
    assert machine.measured[0] == space().default
    assert len(machine.measured) == len(set(machine.measured)) == 25
    assert [number for number, _, _ in machine.told] == list(range(1, 26))
    best = search.best(3)
    kept = [each for each in machine.measured if each.delay_us != 1000]
    assert best == sorted(kept, key=rate_of, reverse=True)[:3]


def test_a_small_space_is_tried_out_and_no_more(tmp_path: Path) -> None:
    machine = Machine()
    found = space(most=0)
    Search(goal(tmp_path), found, None).run(30, machine.measure, machine.tell)
    assert len(machine.measured) == found.size == 4


def test_what_falls_far_behind_is_given_up(tmp_path: Path) -> None:
    given_up: list[Candidate] = []

    def measure(candidate: Candidate, watch: Watch) -> Score:
        rate = 1000.0 if candidate.instances == 1 else 400.0
        try:
            watch(0, rate, 5.0)
        except Hopeless:
            given_up.append(candidate)
            raise
        return Score(rate, 5.0, 8)

    machine = Machine()
    Search(goal(tmp_path), space(most=0), None).run(4, measure, machine.tell)
    assert [candidate.instances for candidate in given_up] == [2, 2]
    assert [candidate for _, candidate, score in machine.told if score is None] == given_up


@pytest.mark.slow
def test_a_study_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    file = tmp_path / "tune.db"
    first = Machine(fail_at=5)
    with pytest.raises(KeyboardInterrupt):
        Search(goal(tmp_path), space(), file).run(10, first.measure, first.tell)
    search = Search(goal(tmp_path), space(), file)
    assert search.tried == 4
    second = Machine()
    search.run(10, second.measure, second.tell)
    assert second.measured[0] == first.measured[4]
    assert len({*first.measured, *second.measured}) == 10
    assert len(second.measured) == 6


def test_a_study_of_something_else_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "tune.db"
    Search(goal(tmp_path), space(), file)
    other = replace(goal(tmp_path), latency_ms=20.0)
    with pytest.raises(ProfileError, match=r"tune\.db is of other trials: its latency_ms is 10\.0"):
        Search(other, space(), file)


def test_a_file_that_is_no_study_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "tune.db"
    file.write_text("something else altogether, long enough to be no database" * 20)
    with pytest.raises(ProfileError, match=r"tune\.db cannot be used"):
        Search(goal(tmp_path), space(), file)
    with pytest.raises(ProfileError, match=r"t\.db cannot be used"):
        Search(goal(tmp_path), space(), tmp_path / "nowhere" / "t.db")


def test_values_order_first_by_the_limit_then_by_rate(tmp_path: Path) -> None:
    mine = goal(tmp_path)
    kept, slower = Score(10.0, 9.0, 1), Score(5.0, 9.0, 1)
    late, later, failed = Score(99.0, 11.0, 1), Score(999.0, 50.0, 1), Score(99.0, 9.0, 1, errors=1)
    ordered = sorted([later, late, slower, kept], key=lambda score: score.value(mine))
    assert ordered == [later, late, slower, kept]
    assert not failed.keeps(mine)
    assert failed.value(mine) < 0


# ---- the verdict


def final(*rates: float, late: bool = False, instances: int = 2) -> Final:
    latency = 20.0 if late else 5.0
    return Final(Candidate(8, 0, instances, 1), tuple(Score(rate, latency, 4) for rate in rates))


def test_the_winner_is_better_beyond_noise(tmp_path: Path) -> None:
    default = final(100, 110, 105, instances=1)
    clear, near = final(120, 130, 125), final(109, 150, 160, instances=3)
    assert winner(goal(tmp_path), [default, near, clear]) is clear
    assert winner(goal(tmp_path), [default, near]) is default


def test_one_measurement_must_show_more(tmp_path: Path) -> None:
    default = final(100, instances=1)
    assert winner(goal(tmp_path), [default, final(105)]) is default
    more = final(120)
    assert winner(goal(tmp_path), [default, more]) is more


def test_a_rate_beyond_the_limit_counts_for_nothing(tmp_path: Path) -> None:
    default, kept = final(500, 510, late=True, instances=1), final(90, 100)
    assert winner(goal(tmp_path), [default, final(900, 900, late=True), kept]) is kept
    some = Final(default.candidate, (*default.scores, Score(95.0, 5.0, 4)))
    assert winner(goal(tmp_path), [some, kept]) is some


def test_nothing_keeps_the_limit(tmp_path: Path) -> None:
    finals = [final(500, 510, late=True, instances=1), final(900, 900, late=True)]
    with pytest.raises(ProfileError, match=r"keeps p99 within 10 ms; the nearest has 20\.0 ms"):
        winner(goal(tmp_path), finals)
