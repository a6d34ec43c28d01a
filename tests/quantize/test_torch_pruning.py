"""Pruning and sparsity."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import onnx
import pytest
import torch
from digits import Dense, Net, accuracy, apply, as_model, trained
from onnx import numpy_helper

from ds_quantize.errors import MethodError
from ds_quantize.forms import TorchModel
from ds_quantize.torch_export import exported, to_onnx
from ds_quantize.torch_methods.sparsity24 import follows

pytestmark = pytest.mark.slow


def parameters(model: TorchModel) -> int:
    return sum(weight.numel() for weight in model.module.parameters())


@pytest.mark.parametrize("norm", [1, 2])
def test_channels_go_until_the_share_is_left(norm: int, tmp_path: Path) -> None:
    model = trained()
    made, measured = apply(
        "prune-channels",
        model,
        tmp_path,
        keep=0.5,
        norm=norm,
        steps=2,
        epochs=5,
        learning_rate=3e-3,
    )
    assert 0.35 * parameters(model) < parameters(made) <= 0.5 * parameters(model)
    assert measured["sizes"]["after"]["parameters"] == parameters(made)
    assert measured["channels"]["head"] == 10
    assert measured["channels"]["block.first"] < 16
    assert made.module.block.second.weight.shape[0] == made.module.stem.weight.shape[0]
    assert accuracy(made, tmp_path) > 0.85


def test_channels_by_operations_in_multiples(tmp_path: Path) -> None:
    made, measured = apply(
        "prune-channels",
        trained(),
        tmp_path,
        keep=0.6,
        of="operations",
        globally=False,
        round_to=4,
        steps=1,
        exclude=("last",),
        epochs=0,
    )
    sizes = measured["sizes"]
    assert sizes["after"]["operations"] <= 0.6 * sizes["before"]["operations"]
    assert measured["channels"] == measured["channels"] | {"last": 32, "head": 10}
    assert all(measured["channels"][name] % 4 == 0 for name in ("stem", "block.first"))
    assert made.module(torch.rand(3, 1, 8, 8)).shape == (3, 10)


def test_channels_that_cannot_go(tmp_path: Path) -> None:
    with pytest.raises(MethodError, match=r"parameters are left, and .* are wanted; raise `keep`"):
        apply("prune-channels", as_model(Net(4)), tmp_path, keep=0.01, max_ratio=0.3, epochs=0)
    with pytest.raises(MethodError, match="exclude: no layer is called 'stemm'; there are: stem,"):
        apply("prune-channels", as_model(Net(4)), tmp_path, exclude=("stemm",))
    whole = as_model(Net(4))
    program = dataclasses.replace(whole, module=exported(whole).module())
    with pytest.raises(MethodError, match="an exported graph has none: give the model as file"):
        apply("prune-channels", program, tmp_path, epochs=0)


def test_the_smallest_weights_are_zero_and_stay_so(tmp_path: Path) -> None:
    made, measured = apply(
        "prune-magnitude", trained(), tmp_path, sparsity=0.6, steps=2, epochs=2, learning_rate=2e-3
    )
    weights = [part.weight for part in made.module.modules() if hasattr(part, "weight")]
    layers = [weight for weight in weights if weight.ndim > 1]
    share = sum((weight == 0).sum() for weight in layers) / sum(map(torch.numel, layers))
    assert share == pytest.approx(0.6, abs=0.001)
    assert set(measured["sparsity"]) == {"stem", "block.first", "block.second", "last", "head"}
    assert "block.first.weight" in dict(made.module.named_parameters())
    assert accuracy(made, tmp_path) > 0.95


def test_whole_blocks_are_zero(tmp_path: Path) -> None:
    made, measured = apply(
        "sparsity-block", trained(), tmp_path, sparsity=0.5, block=(4, 9), learning_rate=2e-3
    )
    weight = made.module.last.weight.detach()
    blocks = weight.reshape(8, 4, 16, 9).permute(0, 2, 1, 3).reshape(128, 36)
    zero = (blocks == 0).all(1)
    assert int(zero.sum()) == 64
    assert bool((blocks[~zero] != 0).any(1).all())
    assert measured["sparsity"]["last"] == pytest.approx(0.5)
    assert accuracy(made, tmp_path) > 0.93


def test_two_of_four_are_zero_also_in_the_file(tmp_path: Path) -> None:
    made, measured = apply("sparsity-2-4", trained(), tmp_path, epochs=5, learning_rate=2e-3)
    assert measured["layers"] == ["block.first", "block.second", "last"]
    assert measured["dense"] == ["stem", "head"]
    assert type(made.module) is Net
    assert accuracy(made, tmp_path) > 0.96
    path = to_onnx(made, tmp_path / "sparse.onnx").path
    constants = [numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer]
    convolutions = [
        torch.tensor(each) for each in constants if each.ndim == 4 and each.shape[1] > 1
    ]
    assert len(convolutions) == 3
    assert all(follows(weight) for weight in convolutions)


def test_two_of_four_by_sparsegpt(tmp_path: Path) -> None:
    made, measured = apply(
        "sparsity-2-4", trained(Dense, 64), tmp_path, algorithm="sparsegpt", epochs=0
    )
    assert measured["layers"] == ["first", "second"]
    assert follows(made.module.second.weight.detach())
    with pytest.raises(MethodError, match="it takes linear layers with multiples of 4"):
        apply("sparsity-2-4", as_model(Net(4)), tmp_path, algorithm="sparsegpt", epochs=0)
    with pytest.raises(MethodError, match="it takes multiples of 8 output and 16 input channels"):
        apply("sparsity-2-4", as_model(Net(4)), tmp_path, epochs=0)


def test_the_pattern_is_told_from_others() -> None:
    assert follows(torch.tensor([[0.0, 1, 0, 2, 3, 0, 0, 0]]))
    assert not follows(torch.tensor([[0.0, 0, 0, 0, 3, 0, 1, 1]]))
    assert not follows(torch.tensor([[0.0, 0, 0]]))
