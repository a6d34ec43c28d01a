"""Training of the detector, on crops of synthetic boards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from ds_quantize.progress import Reporter, Silent
from loadtests.vision.boards import Board, board
from loadtests.vision.net import STRIDES, Detector, positions

Array = npt.NDArray[Any]
CROP = 192
SMALL = 40
"""Pixels of the longer side up to which the finer level answers for a box; and beyond, where the
shorter one is too thin for the coarser level.
"""
THIN = 20
SEEN = 0.5
"""The share of a box that must be in a crop to be looked for; what is less is not judged."""

TOLD = 50
"""Steps after which the loss is told again."""


@dataclass(frozen=True)
class Plan:
    """How long, and on what. `seed` is that of the first board. `bf16`: multiply in half precision,
    which takes a third of the time on CPUs with AMX, and more on those that have no such numbers.
    """

    boards: int = 20
    defects: int = 90
    steps: int = 700
    batch: int = 16
    rate: float = 4e-3
    seed: int = 1000
    threads: int = 2
    bf16: bool = True


@dataclass(frozen=True)
class Targets:
    """What each position should say: its class [n, positions] or -1, and its box [.., 4] in the
    crop's pixels; `judged` is false where a box is cut off.
    """

    classes: torch.Tensor
    boxes: torch.Tensor
    judged: torch.Tensor


def trained(plan: Plan, reporter: Reporter | None = None) -> Detector:
    """A detector, ready for use."""
    reporter = reporter or Silent()
    torch.manual_seed(0)
    torch.set_num_threads(plan.threads)
    with reporter.stage("boards"):
        seeds = range(plan.seed, plan.seed + plan.boards)
        boards = [board(seed, plan.defects) for seed in reporter.track(seeds, "Drawing")]
    detector = Detector().to(memory_format=torch.channels_last)
    chance = np.random.default_rng(0)
    optimizer = torch.optim.AdamW(detector.parameters(), plan.rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, plan.rate, total_steps=plan.steps)
    points, strides = positions(CROP, CROP)
    with reporter.stage("training"):
        for step in reporter.track(range(plan.steps), "Training"):
            images, targets = _batch(boards, plan.batch, points, strides, chance)
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=plan.bf16):
                logits, distances = detector.raw(images)
            now = loss(logits.float(), distances.float(), targets, points)
            now.backward()
            torch.nn.utils.clip_grad_norm_(detector.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            if step % TOLD == 0:
                reporter.say(f"  step {step}: loss {now.item():.3f}")
    return detector.to(memory_format=torch.contiguous_format).eval()


def _batch(
    boards: Sequence[Board],
    size: int,
    points: torch.Tensor,
    strides: torch.Tensor,
    chance: np.random.Generator,
) -> tuple[torch.Tensor, Targets]:
    images, found = [], []
    for _ in range(size):
        image, boxes, classes, judged = crop(boards[chance.integers(len(boards))], chance)
        images.append(image)
        found.append(aimed(boxes, classes, judged, points, strides))
    stacked = Targets(*(torch.stack(parts) for parts in zip(*found, strict=True)))
    return torch.from_numpy(np.stack(images)), stacked


def crop(given: Board, chance: np.random.Generator) -> tuple[Array, Array, Array, Array]:
    """uint8 [3, CROP, CROP] out of a board, mirrored or turned as it comes; boxes [n, 4] in it, cut
    at its edges, their classes, and whether enough of each is to be seen. Mostly around a defect.
    """
    height, width = given.picture.shape[:2]
    corner = chance.integers(0, (width - CROP, height - CROP))
    if len(given.boxes) and chance.random() < 0.85:
        box = given.boxes[chance.integers(len(given.boxes))]
        middle = (box[:2] + box[2:]) / 2 - chance.uniform(0, CROP, 2)
        corner = np.clip(middle, 0, (width - CROP, height - CROP)).astype(int)
    image = given.picture[corner[1] : corner[1] + CROP, corner[0] : corner[0] + CROP]
    boxes, classes, share = _cut(given, corner)
    image, boxes = _mirrored(image, boxes, chance)
    gain, shift = np.float32(chance.uniform(0.8, 1.2)), np.float32(chance.uniform(-12, 12))
    lit = np.clip(image.astype(np.float32) * gain + shift, 0, 255).astype(np.uint8)
    return lit.transpose(2, 0, 1), boxes, classes, share >= SEEN


def _cut(given: Board, corner: Array) -> tuple[Array, Array, Array]:
    moved = given.boxes - np.tile(corner, 2).astype(np.float32)
    boxes = np.clip(moved, 0, CROP)
    sizes, whole = (b[:, 2:] - b[:, :2] for b in (boxes, moved))
    kept = (sizes > 0).all(1)
    share = sizes.prod(1)[kept] / whole.prod(1)[kept]
    return boxes[kept], given.classes[kept], share


def _mirrored(image: Array, boxes: Array, chance: np.random.Generator) -> tuple[Array, Array]:
    if chance.random() < 0.5:
        image, boxes = image[:, ::-1], np.stack(
            [CROP - boxes[:, 2], boxes[:, 1], CROP - boxes[:, 0], boxes[:, 3]], 1
        )  # fmt: skip
    if chance.random() < 0.5:
        image, boxes = image.transpose(1, 0, 2), boxes[:, [1, 0, 3, 2]]
    return image, boxes


def aimed(
    boxes: Array, classes: Array, judged: Array, points: torch.Tensor, strides: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Each position's class, box, and whether it is judged. The smallest box is the one that a
    position near several middles answers for.
    """
    classes_at = torch.full((len(points),), -1)
    boxes_at = torch.zeros((len(points), 4))
    judged_at = torch.ones(len(points), dtype=torch.bool)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    for index in np.argsort(-areas):
        box = torch.from_numpy(boxes[index])
        inside = ((points > box[:2]) & (points < box[2:])).all(1)
        if not judged[index]:
            judged_at &= ~inside
            continue
        near = ((points - (box[:2] + box[2:]) / 2).abs() <= strides[:, None]).all(1)
        chosen = inside & near & (strides == _stride(box))
        classes_at[chosen] = int(classes[index])
        boxes_at[chosen] = box
        judged_at[chosen] = True
    return classes_at, boxes_at, judged_at


def _stride(box: torch.Tensor) -> int:
    """Of the level that answers for it."""
    sides = box[2:] - box[:2]
    return STRIDES[int(sides.max() > SMALL and sides.min() >= THIN)]


def loss(
    logits: torch.Tensor, distances: torch.Tensor, targets: Targets, points: torch.Tensor
) -> torch.Tensor:
    """Focal loss of the classes (Lin and others, 2017) and generalized IoU of the boxes
    (Rezatofighi and others, 2019), by position that has one.
    """
    positive = targets.classes >= 0
    wanted = functional.one_hot(targets.classes.clamp(min=0), logits.shape[2]).float()
    wanted = wanted * positive[..., None]
    focal = _focal(logits, wanted) * targets.judged[..., None]
    count = positive.sum().clamp(min=1)
    at = points.expand(len(logits), -1, -1)[positive]
    reach = distances[positive]
    boxes = torch.cat([at - reach[:, :2], at + reach[:, 2:]], 1)
    return focal.sum() / count + (1 - _giou(boxes, targets.boxes[positive])).sum() / count


def _focal(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    entropy = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    sure = torch.sigmoid(logits)
    missed = wanted * (1 - sure) + (1 - wanted) * sure
    return (0.25 * wanted + 0.75 * (1 - wanted)) * missed**2 * entropy


def _giou(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Row by row."""
    common = _area(
        torch.maximum(first[:, :2], second[:, :2]), torch.minimum(first[:, 2:], second[:, 2:])
    )
    hull = _area(
        torch.minimum(first[:, :2], second[:, :2]), torch.maximum(first[:, 2:], second[:, 2:])
    )
    both = _area(first[:, :2], first[:, 2:]) + _area(second[:, :2], second[:, 2:]) - common
    return common / both.clamp(min=1e-6) - (hull - both) / hull.clamp(min=1e-6)


def _area(begin: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
    return (end - begin).clamp(min=0).prod(1)
