"""A detector of boards' defects: trained for a minute, quantized, promoted, and as good."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from loadtests.vision import data, example
from loadtests.vision.__main__ import RECIPE, write_onnx
from loadtests.vision.boards import Board, board
from loadtests.vision.measure import inspected
from loadtests.vision.net import Detector, positions
from loadtests.vision.train import Plan, trained

from ds_quantize import Settings, quantize
from ds_quantize.evaluate import Options

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

QUICK = Options(batches=(1,), seconds=0.05, repeats=1, memory=False, layer_rows=0)


@pytest.fixture(scope="module")
def detector() -> Detector:
    return trained(Plan(boards=4, steps=200, threads=1))


@pytest.fixture(scope="module")
def boards() -> list[Board]:
    return [board(data.EVALUATION + number, 16, 1280, 960) for number in range(6)]


def test_int8_finds_what_the_original_finds(
    detector: Detector, boards: list[Board], tmp_path: Path
) -> None:
    original = write_onnx(detector, tmp_path / "detector.onnx")
    calibration = data.tiles([board(data.CALIBRATION, 16, 1280, 960)])
    made = quantize(
        str(original),
        str(RECIPE),
        {"image": calibration["image"]},
        evaluation=data.tiles(boards),
        output=tmp_path / "models" / example.DETECTOR,
        settings=Settings(work=tmp_path / "work", threads=1, options=QUICK),
    )
    assert made.version is not None
    version = made.version / "model.onnx"
    before, after = (inspected(path, boards, 1) for path in (original, version))
    assert before.mean_average_precision > 0.3
    assert after.mean_average_precision > before.mean_average_precision - 0.03
    kinds = [node.op_type for node in onnx.load(version).graph.node]
    assert kinds.count("QuantizeLinear") > 10


def test_tiles_of_the_pyramid_are_what_the_example_reads(detector: Detector) -> None:
    """Both have the same positions in the same order."""
    size = example.tile_size()
    scores, _ = detector(torch.zeros((1, 3, size, size), dtype=torch.uint8))
    points, _ = positions(size, size)
    centres = example.centres(size)
    assert scores.shape[1] == len(points)
    np.testing.assert_array_equal(points.numpy(), centres)
