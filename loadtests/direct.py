"""The engine alone, in a process of its own: what no server around it can exceed.

python -m loadtests.direct mlp.onnx --batch 1 --seconds 2    prints one JSON object
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from loadtests.perf_analyzer import BenchmarkError, Point

ROOT = Path(__file__).resolve().parent.parent


def measure(model: Path, batch: int, seconds: float, threads: int = 1) -> Point:
    """Run `batch` rows at a time, one call after the other. Raises BenchmarkError."""
    command = [sys.executable, "-m", "loadtests.direct", str(model.resolve())]
    command += ["--batch", str(batch), "--seconds", str(seconds), "--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise BenchmarkError(f"ONNX Runtime alone failed:\n{done.stderr.strip()[-2000:]}")
    return Point(**json.loads(done.stdout))


def _loop(model: Path, batch: int, seconds: float, threads: int) -> Point:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (tensor,) = session.get_inputs()
    shape = (batch, *tensor.shape[1:])
    random = np.random.default_rng(0)
    whole = tensor.type == "tensor(int64)"
    rows = random.integers(1, 100, shape) if whole else random.random(shape, dtype=np.float32)
    feed = {tensor.name: rows}
    warm = time.perf_counter() + min(1.0, seconds / 2)
    while time.perf_counter() < warm:
        session.run(None, feed)
    took = []
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds:
        start = time.perf_counter_ns()
        session.run(None, feed)
        took.append(time.perf_counter_ns() - start)
    rate = len(took) * batch / (time.perf_counter() - begun)
    p50, p99 = np.percentile(np.array(took) / 1e3, [50, 99])
    return Point(rate, float(p50), float(p99))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    print(json.dumps(vars(_loop(given.model, given.batch, given.seconds, given.threads))))


if __name__ == "__main__":
    main()
