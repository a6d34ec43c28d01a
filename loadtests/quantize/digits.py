"""A small network that reads handwritten digits, for the recipes that train.

Needs torch and scikit-learn, which carries the digits.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from loadtests.quantize import Case, recipe

HELD_OUT, CHANNELS, EPOCHS, BATCH = 500, 24, 20, 32

FACTORY = """
from pathlib import Path
import torch
from loadtests.quantize.digits import Net

def factory():
    net = Net()
    net.load_state_dict(torch.load(Path(__file__).parents[1] / "digits.pt"))
    return net
"""


class Block(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = torch.relu(self.norm1(self.first(x)))
        return torch.relu(x + self.norm2(self.second(inner)))


class Net(nn.Module):
    """`image` FP32 [n, 1, 8, 8] to scores [n, 10]."""

    def __init__(self, channels: int = CHANNELS) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.block = Block(channels)
        self.pool = nn.MaxPool2d(2)
        self.last = nn.Conv2d(channels, 2 * channels, 3, padding=1)
        self.hidden = nn.Linear(2 * channels, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.block(torch.relu(self.norm(self.stem(image)))))
        x = torch.relu(self.last(x)).mean((2, 3))
        return self.head(torch.relu(self.hidden(x)))


def student() -> Net:
    """A third of the width."""
    return Net(CHANNELS // 3)


def case(folder: Path, rows: int = HELD_OUT) -> Case:
    """A trained network; `rows` digits that it has not seen, and those that it has."""
    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    images = (found.images / 16).astype(np.float32)[order, None]
    labels = found.target[order]
    seen = slice(0, len(labels) - HELD_OUT)
    unseen = slice(len(labels) - HELD_OUT, len(labels) - HELD_OUT + rows)
    np.savez(folder / "calibration.npz", image=images[seen], labels=labels[seen])
    np.savez(folder / "evaluation.npz", image=images[unseen], labels=labels[unseen])
    weights = folder.parent / "digits.pt"  # the same for all recipes
    if not weights.is_file():
        torch.save(_trained(images[seen], labels[seen]).state_dict(), weights)
    (folder / "net.py").write_text(FACTORY)
    return Case(
        name="digits",
        about=f"handwritten digits; {rows} that no model has seen",
        model=f"{folder / 'net.py'}:factory",
        calibration=str(folder / "calibration.npz"),
        evaluation=str(folder / "evaluation.npz"),
        recipe=recipe("digits-qat-int8"),
    )


def _trained(images: np.ndarray, labels: np.ndarray) -> Net:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # on so small a network more would wait for each other
    net, inputs, wanted = Net(), torch.from_numpy(images), torch.from_numpy(labels)
    optimizer = torch.optim.AdamW(net.parameters(), 5e-3)
    steps = EPOCHS * -(-len(inputs) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(EPOCHS):
        for part in torch.randperm(len(inputs)).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(inputs[part]), wanted[part]).backward()
            optimizer.step()
            schedule.step()
    return net.eval()
