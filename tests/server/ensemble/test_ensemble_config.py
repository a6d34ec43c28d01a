"""What can be wrong in an ensemble's configuration, alone and with its members."""

from __future__ import annotations

from pathlib import Path

import ensembles
import pytest

from ds_engines.errors import ConfigError
from ds_engines.spec import BatchPolicy, ModelSpec, Step, TensorSpec
from ds_serve.ensemble.members import judge
from ds_serve.repository.folder import read_model
from ds_serve.transport.messages import ModelState

X = ensembles.tensors("input", "x")
Y = ensembles.tensors("output", "y")
GOOD = ensembles.step("m", {"a": "x"}, {"b": "y"})


def test_version_folders_may_be_there_or_not(tmp_path: Path) -> None:
    ensembles.ensemble(tmp_path / "e", X + Y, GOOD)
    (source,) = read_model(tmp_path / "e", "e")
    assert (source.version, source.engine) == ("1", "ensemble")
    assert source.ensemble is not None
    assert source.ensemble.steps == (Step("m", "", (("a", "x"),), (("b", "y"),)),)
    (tmp_path / "e/3").mkdir()
    assert [source.version for source in read_model(tmp_path / "e", "e")] == ["3"]


@pytest.mark.parametrize(
    ("said", "steps", "wrong"),
    [
        (X + Y, [], "no step"),
        (X, [GOOD], "no output"),
        (Y, [GOOD], "no input"),
        (X + X + Y, [GOOD], "input 'x' is there twice"),
        (X + Y, [ensembles.step("e", {"a": "x"}, {"b": "y"})], "step 1.*contains itself"),
        (X + Y, [ensembles.step("m", {}, {"b": "y"})], "step 1.*no input_map"),
        (X + Y, [ensembles.step("m", {"a": "x"}, {})], "step 1.*no output_map"),
        (X + Y, [ensembles.step("m", {"a": "z"}, {"b": "y"})], "step 1.*'z', which nobody makes"),
        (X + Y, [ensembles.step("m", {"a": "x"}, {"b": "z"})], "output 'y' is made by no step"),
        (X + Y, [GOOD, GOOD], r"step 2 \(model 'm'\).*'y'.*made by step 1"),
        (X + Y, [GOOD, ensembles.step("n", {"a": "y"}, {"b": "x"})], "step 2.*'x'.*the request"),
        (
            X + Y,
            [
                ensembles.step("m", {"a": "x", "c": "s"}, {"b": "y"}),
                ensembles.step("n", {"a": "y"}, {"b": "s"}),
            ],
            "circle: step 1.*step 2.*step 1|circle: step 2.*step 1.*step 2",
        ),
        (X + Y + "dynamic_batching {}", [GOOD], "dynamic_batching|oneof"),
        (X + Y + "response_cache { enable: true }", [GOOD], "response_cache"),
        (X + Y + "instance_group [ { count: 2 } ]", [GOOD], "instance_group"),
        (ensembles.tensors("input", "x", dims="0") + Y, [GOOD], r"input 'x': dims are \[0\]"),
    ],
)
def test_wrong_alone(tmp_path: Path, said: str, steps: list[str], wrong: str) -> None:
    path = ensembles.ensemble(tmp_path / "e", said, *steps)
    with pytest.raises(ConfigError, match=f"(?s){path}.*({wrong})"):
        read_model(tmp_path / "e", "e")


def member(
    name: str = "m",
    datatype: str = "FP32",
    shape: tuple[int, ...] = (-1, 4),
    most: int = 8,
    axis: int | None = 0,
    **other: object,
) -> ModelState:
    """A model that is ready, from `a` to `b`."""
    spec = ModelSpec(
        name,
        "onnxruntime",
        Path("model.onnx"),
        inputs=(TensorSpec("a", datatype, shape, axis),),
        outputs=(TensorSpec("b", "FP32", (-1, 4), axis),),
        batch=BatchPolicy(max_batch_size=most),
        **other,  # type: ignore[arg-type]
    )
    return ModelState(name, "ready", spec=spec, address="there")


def judged(tmp_path: Path, *states: ModelState, steps: tuple[str, ...] = (GOOD,)) -> str:
    ensembles.ensemble(tmp_path / "e", X + Y, *steps)
    (source,) = read_model(tmp_path / "e", "e")
    assert source.ensemble is not None
    state, reason = judge(source.ensemble, states)
    return f"{state}: {reason}" if reason else state


def test_ready_with_its_members(tmp_path: Path) -> None:
    assert judged(tmp_path, member()) == "ready"
    assert judged(tmp_path, member(shape=(-1, -1), most=64)) == "ready"


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (member(datatype="INT32"), "input 'a' is INT32, but 'x' of the request is FP32"),
        (member(shape=(-1, 5)), r"input 'a' has shape [-1, 5], but 'x' of the request has [-1, 4]"),
        (member(shape=(-1, 4, 1)), "has shape [-1, 4, 1]"),
        (member(most=4), "its max_batch_size is 4, but the ensemble's is 8"),
        (member(axis=1), "'b' has its rows on axis 1"),
        (member(decoupled=True), "decoupled"),
        (member(task="text"), "decoupled"),
    ],
)
def test_members_that_do_not_fit(tmp_path: Path, state: ModelState, says: str) -> None:
    said = judged(tmp_path, state)
    assert said.startswith(f"failed: {tmp_path / 'e/config.pbtxt'}: step 1 (model 'm')")
    assert says in said


def test_unknown_tensors_of_members(tmp_path: Path) -> None:
    said = judged(tmp_path, member(), steps=(ensembles.step("m", {"q": "x"}, {"b": "y"}),))
    assert (
        "step 1 (model 'm'): input_map names the input 'q', but the model's inputs are: a" in said
    )
    said = judged(tmp_path, member(), steps=(ensembles.step("m", {"a": "x"}, {"q": "y"}),))
    assert "output_map names the output 'q', but the model's outputs are: b" in said


def test_states_of_members(tmp_path: Path) -> None:
    assert "step 1 (model 'm'): there is no such model" in judged(tmp_path)
    loading = ModelState("m", "loading")
    assert judged(tmp_path, loading) == "loading: step 1 (model 'm') is loading"
    again = ModelState("m", "restarting", "it died")
    assert judged(tmp_path, again) == "restarting: step 1 (model 'm') is restarting: it died"
    failed = ModelState("m", "failed", "no file")
    assert judged(tmp_path, failed) == "failed: step 1 (model 'm') is failed: no file"
    old = member()
    assert judged(tmp_path, old, ModelState("m", "loading", version="2")) == "ready"


def test_version_that_a_step_names(tmp_path: Path) -> None:
    step = ensembles.step("m", {"a": "x"}, {"b": "y"}, version=2)
    assert "it has no version 2" in judged(tmp_path, member(), steps=(step,))
    assert "there is no such model" not in judged(tmp_path, member())
