"""PyTorch's own speed: python -m loadtests.gpu.pytorch OUT [--batches 1 8 32 128] [--seconds 3].

For another interpreter than the server's: it needs torch, and takes torchvision's network where
that is there.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--device", default="cuda")
    given = parser.parse_args()
    import torch

    torch.backends.cudnn.benchmark = True
    net = resnet50(torch).eval().to(given.device)
    found: dict[str, Any] = {"torch": torch.__version__}
    for name, half, tf32 in (("fp32", False, False), ("tf32", False, True), ("fp16", True, True)):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        found[name] = {size: _rate(torch, net, size, half, given) for size in given.batches}
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "pytorch.json").write_text(json.dumps(found, indent=2))
    print(json.dumps(found))


def resnet50(torch: Any) -> Any:
    """torchvision's, with random weights; the same written out where it is not installed."""
    try:
        import torchvision
    except ImportError:
        return _written_out(torch.nn)
    return torchvision.models.resnet50(weights=None)


def _written_out(nn: Any) -> Any:
    """The same layers (He and others, 2015)."""

    def conv(size: int, into: int, kernel: int, stride: int = 1) -> list[Any]:
        layer = nn.Conv2d(size, into, kernel, stride, kernel // 2, bias=False)
        return [layer, nn.BatchNorm2d(into)]

    class Block(nn.Module):  # type: ignore[misc]
        def __init__(self, size: int, width: int, stride: int) -> None:
            super().__init__()
            first, second = conv(size, width, 1), conv(width, width, 3, stride)
            third = conv(width, 4 * width, 1)
            self.way = nn.Sequential(*first, nn.ReLU(), *second, nn.ReLU(), *third)
            same = stride == 1 and size == 4 * width
            self.past = nn.Identity() if same else nn.Sequential(*conv(size, 4 * width, 1, stride))

        def forward(self, rows: Any) -> Any:
            return nn.functional.relu(self.way(rows) + self.past(rows))

    layers, size = [*conv(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)], 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        for index in range(blocks):
            layers.append(Block(size, 64 << stage, 2 if stage and not index else 1))
            size = 256 << stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000))


def _rate(torch: Any, net: Any, size: int, half: bool, given: argparse.Namespace) -> float:
    """Images a second, copied from pinned memory and back, one batch after the other."""
    layout = torch.channels_last if half else torch.contiguous_format
    net = net.half() if half else net.float()
    net = net.to(memory_format=layout)
    host = torch.zeros(size, 3, 224, 224)
    host = host.pin_memory() if given.device == "cuda" else host

    def step() -> None:
        rows = host.to(given.device, non_blocking=True)
        rows = (rows.half() if half else rows).contiguous(memory_format=layout)
        net(rows).float().cpu()

    with torch.inference_mode():
        for _ in range(5):
            step()
        done, began = 0, time.perf_counter()
        while time.perf_counter() - began < given.seconds:
            step()
            done += size
    return round(done / (time.perf_counter() - began), 1)


if __name__ == "__main__":
    main()
