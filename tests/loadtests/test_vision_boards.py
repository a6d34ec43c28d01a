"""Synthetic boards, and how what is found on them is counted."""

from __future__ import annotations

import numpy as np
import pytest
from loadtests.vision import CLASSES, HOLE, SCRATCH, data, example
from loadtests.vision.boards import board
from loadtests.vision.matching import NOTHING, Boxes, matched, outcome, recall
from loadtests.vision.measure import score_for

WIDTH, HEIGHT = 960, 640


def boxes(*rows: tuple[float, ...]) -> Boxes:
    """Left, top, right, bottom, class, score."""
    array = np.array(rows, np.float32).reshape(-1, 6)
    return Boxes(array[:, :4], array[:, 4].astype(np.int64), array[:, 5])


def test_a_seed_is_a_board() -> None:
    first, again, other = (board(seed, 8, WIDTH, HEIGHT) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.picture, again.picture)
    np.testing.assert_array_equal(first.boxes, again.boxes)
    assert (first.picture != other.picture).mean() > 0.5


def test_boards_have_defects_of_all_classes_within_the_picture() -> None:
    made = [board(seed, 20, WIDTH, HEIGHT) for seed in range(4)]
    counts = np.bincount(np.concatenate([each.classes for each in made]), minlength=len(CLASSES))
    assert counts.min() >= 4
    assert counts.sum() >= 70
    for each in made:
        assert each.picture.shape == (HEIGHT, WIDTH, 3)
        assert (each.boxes >= 0).all()
        assert (each.boxes <= [WIDTH, HEIGHT, WIDTH, HEIGHT]).all()
        sides = each.boxes[:, 2:] - each.boxes[:, :2]
        assert sides.min() >= 5
        assert sides.max() <= example.settings("inspection_tiles")["overlap"]


def test_a_box_is_where_the_board_differs_from_a_sound_one() -> None:
    """Of a scratch or a hole, the middle of what is drawn is the middle of the box."""
    for seed in range(6):
        made = board(seed, 20, WIDTH, HEIGHT)
        for box in made.boxes[made.classes == HOLE]:
            left, top, right, bottom = box.round().astype(int)
            inner = made.picture[top + 4 : bottom - 4, left + 4 : right - 4].mean()
            outer = made.picture[max(0, top - 12) : bottom + 12, max(0, left - 12) : right + 12]
            assert inner < outer.mean()


def test_light_and_noise_vary() -> None:
    means = [board(seed, 0, 320, 320).picture.mean() for seed in range(8)]
    assert np.ptp(means) > 15


def test_the_best_found_box_of_a_defect_counts_once() -> None:
    true = boxes((0, 0, 10, 10, HOLE, 1), (50, 50, 70, 70, SCRATCH, 1))
    found = boxes(
        (0, 0, 10, 9, HOLE, 0.7),
        (0, 0, 10, 10, HOLE, 0.9),  # the same defect, and better
        (50, 50, 70, 70, HOLE, 0.8),  # another class
        (52, 50, 72, 70, SCRATCH, 0.6),
        (62, 50, 82, 70, SCRATCH, 0.5),  # too far away
    )
    assert matched(found, true).tolist() == [False, True, False, True, False]
    assert matched(boxes(), true).tolist() == []
    assert matched(found, boxes()).tolist() == [False] * 5


def test_recall_precision_and_average_precision() -> None:
    true = boxes((0, 0, 10, 10, HOLE, 1), (30, 0, 40, 10, HOLE, 1))
    found = boxes((0, 0, 10, 10, HOLE, 0.9), (80, 0, 90, 10, HOLE, 0.8), (30, 0, 40, 10, HOLE, 0.7))
    told = outcome([(found, true), (boxes(), boxes((5, 5, 25, 25, SCRATCH, 1)))])
    assert told.at(0.75) == (1 / 3, 1 / 2)
    assert told.at(0.1) == (2 / 3, 2 / 3)
    assert told.at(0.95) == (0, 1)
    assert told.recall_of(HOLE, 0.75) == 0.5
    # Of a hole: precision 1 up to half of them, 2/3 up to all.
    assert told.average_precision(HOLE) == pytest.approx(0.5 + 0.5 * 2 / 3)
    assert told.mean_average_precision == pytest.approx((0.5 + 0.5 * 2 / 3) / 2)
    assert score_for(1.0, told) == pytest.approx(0.9)
    assert score_for(0.6, told) == pytest.approx(0.7)


def test_recall_of_tiles_reads_what_the_detector_gives() -> None:
    size = example.tile_size()
    positions = sum((size // stride) ** 2 for stride in (8, 16))
    outputs = {
        "scores": np.zeros((2, positions, len(CLASSES)), np.float32),
        "distances": np.zeros((2, positions, 4), np.float32),
    }
    at = 3 * (size // 8) + 5  # whose middle is (44, 28)
    outputs["scores"][0, at, SCRATCH] = 0.9
    outputs["distances"][0, at] = (20, 10, 22, 8)
    labels = np.full((2, 2, 5), NOTHING, np.float32)
    labels[0, 0] = (24, 18, 66, 36, SCRATCH)
    labels[1, 0] = (24, 18, 66, 36, SCRATCH)
    assert recall(outputs, labels) == [1.0, 0.0]
    labels[0, 1] = (100, 100, 120, 120, HOLE)
    assert recall(outputs, labels) == [0.5, 0.0]


def test_tiles_with_defects_are_labelled_in_their_own_pixels() -> None:
    made = board(5, 20, WIDTH, HEIGHT)
    tiles = data.tiles([made])
    size = example.tile_size()
    assert tiles["image"].shape == (2, 3, size, size)
    there = tiles["labels"][tiles["labels"][..., 4] != NOTHING]
    assert len(there) >= len(made.boxes)
    assert (there[:, :4] >= 0).all()
    assert (there[:, :4] <= size).all()
