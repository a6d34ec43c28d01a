"""A small detector: convolutions, a feature pyramid, and one head for all its levels."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from loadtests.vision import CLASSES

STRIDES = (8, 16)
"""Pixels from one position to the next, on each level of the pyramid."""

RARE = 0.01
"""What a position's classes begin with: most positions show nothing."""


class Convolution(nn.Sequential):
    """3 by 3, normalized."""

    def __init__(self, given: int, made: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(given, made, 3, stride, 1, bias=False), nn.BatchNorm2d(made), nn.ReLU()
        )


class Block(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = Convolution(channels, channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.norm(self.second(self.first(x))))


class Detector(nn.Module):
    """`image` uint8 [n, 3, height, width], sides multiples of 16, is not scaled, for the stem's
    normalization does that. It is made to what each position sees: the
    scores of the classes [n, positions, 5], 0 to 1, and `distances` [n, positions, 4], how many
    pixels its box reaches to the left, up, to the right and down. Positions come level by level,
    row by row.
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = Convolution(3, width, 2)
        self.stage1 = Convolution(width, 2 * width, 2)
        self.stage2 = nn.Sequential(Convolution(2 * width, 4 * width, 2), Block(4 * width))
        self.stage3 = nn.Sequential(Convolution(4 * width, 6 * width, 2), Block(6 * width))
        pyramid = 3 * width
        self.fine = nn.Conv2d(4 * width, pyramid, 1)
        self.coarse = nn.Conv2d(6 * width, pyramid, 1)
        self.smooth = Convolution(pyramid, pyramid)
        self.tower = nn.Sequential(nn.Conv2d(pyramid, pyramid, 3, padding=1), nn.ReLU())
        self.scores = nn.Conv2d(pyramid, len(CLASSES), 3, padding=1)
        self.distances = nn.Conv2d(pyramid, 4, 3, padding=1)
        nn.init.constant_(self.scores.bias, torch.logit(torch.tensor(RARE)).item())
        nn.init.constant_(self.distances.bias, 2.0)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits, distances = self.raw(image)
        return torch.sigmoid(logits), distances

    def raw(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """With the classes before the sigmoid."""
        levels = [self.tower(level) for level in self.pyramid(image.float())]
        logits = [_flat(self.scores(level)) for level in levels]
        distances = [
            _flat(torch.relu(self.distances(level))) * stride
            for level, stride in zip(levels, STRIDES, strict=True)
        ]
        return torch.cat(logits, 1), torch.cat(distances, 1)

    def pyramid(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One level for each of STRIDES; the finer one knows what the coarser one has seen."""
        near = self.stage2(self.stage1(self.stem(x)))
        coarse = self.coarse(self.stage3(near))
        above = functional.interpolate(coarse, scale_factor=2.0, mode="nearest")
        return self.smooth(self.fine(near) + above), coarse


def _flat(level: torch.Tensor) -> torch.Tensor:
    """[n, channels, height, width] to [n, positions, channels]."""
    return level.flatten(2).transpose(1, 2)


def positions(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """x and y of each position [positions, 2], and its level's stride [positions]."""
    points, strides = [], []
    for stride in STRIDES:
        y = (torch.arange(height // stride) + 0.5) * stride
        x = (torch.arange(width // stride) + 0.5) * stride
        rows, columns = torch.meshgrid(y, x, indexing="ij")
        points.append(torch.stack([columns.flatten(), rows.flatten()], 1))
        strides.append(torch.full((rows.numel(),), float(stride)))
    return torch.cat(points), torch.cat(strides)
