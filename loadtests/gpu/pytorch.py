"""PyTorch's own speed: python -m loadtests.gpu.pytorch OUT [--batches 1 8 32 128] [--seconds 3].

For another interpreter than the server's: it needs torch and torchvision alone.
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
    import torchvision

    torch.backends.cudnn.benchmark = True
    net = torchvision.models.resnet50(weights=None).eval().to(given.device)
    found: dict[str, Any] = {"torch": torch.__version__}
    for name, half, tf32 in (("fp32", False, False), ("tf32", False, True), ("fp16", True, True)):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        found[name] = {size: _rate(torch, net, size, half, given) for size in given.batches}
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "pytorch.json").write_text(json.dumps(found, indent=2))
    print(json.dumps(found))


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
