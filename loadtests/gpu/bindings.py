"""Ways to bring batches to ONNX Runtime on a GPU and back, and what each step of ours takes.

    python -m loadtests.gpu.bindings --models MODELS --out OUT

Images a second of ResNet-50, from so many threads, for each of WAYS; for those that go by pinned
memory the mean milliseconds of putting a batch on the device, computing it, and fetching the
answers. `make` of loadtests.gpu writes MODELS.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from ds_engines.base import EngineOptions, Tensors
from loadtests.gpu import engine, models

Run = Callable[[Tensors], Any]


class Steps:
    """Seconds of each step, over all threads, and what these hold on the device."""

    def __init__(self) -> None:
        self.lanes: list[Any] = []
        self._lock = threading.Lock()
        self._spent: dict[str, tuple[int, float]] = {}

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        with self._lock:
            count, spent = self._spent.get(step, (0, 0.0))
            self._spent[step] = count + 1, spent + time.perf_counter() - began

    def milliseconds(self) -> dict[str, float]:
        return {step: round(1e3 * s / count, 3) for step, (count, s) in self._spent.items()}


def session(file: Path, device: str, told: dict[str, str], *, plain: bool = False) -> Any:
    """One with our settings and those that CUDA is `told`; `plain`: with ONNX Runtime's own."""
    import onnxruntime as ort

    from ds_engines.onnxruntime_devices import CUDA, choose, providers
    from ds_engines.onnxruntime_session import opened, settings

    options = EngineOptions(device=device)
    choice = choose(device, ort.get_available_providers())
    if choice.cuda:
        ort.preload_dlls()
    wanted = providers(choice, options)
    if choice.provider == CUDA:
        wanted[0] = (CUDA, wanted[0][1] | told)
    return opened(file, ort.SessionOptions() if plain else settings(options), wanted)


def numpy(file: Path, device: str, steps: Steps, *, plain: bool = False, **told: str) -> Run:
    """`InferenceSession.run`, which copies by itself."""
    made = session(file, device, told, plain=plain)
    return lambda batch: made.run(None, batch)


def bound(file: Path, device: str, steps: Steps) -> Run:
    """Bound values that ONNX Runtime makes of arrays."""
    from ds_engines.onnxruntime_binding import Bound

    made = session(file, device, {})
    binding = Bound(made, "cpu" if device == "cpu" else "cuda")
    names = [output.name for output in made.get_outputs()]
    return lambda batch: binding.run(batch, names)


def pinned(
    file: Path,
    device: str,
    steps: Steps,
    *,
    computing: int = 0,
    piece: int = 0,
    direct: bool = False,
    **told: str,
) -> Run:
    """The engine's own. `computing`: so many batches compute at a time while others are copied;
    `piece`: bytes that are copied to pinned memory before they go on to the device; `direct`: they
    go there from where they are.
    """
    from ds_engines.cuda import device as devices
    from ds_engines.cuda import memory
    from ds_engines.onnxruntime_binding import Lane

    made, mine = session(file, device, told), threading.local()
    here = devices.find("cuda:0" if device == "cuda" else device)
    names = [output.name for output in made.get_outputs()]
    memory.PIECE = piece or 4 << 20
    gate: Any = threading.Semaphore(computing) if computing else nullcontext()

    def run(batch: Tensors) -> Tensors:
        here.use()
        if not hasattr(mine, "lane"):
            mine.lane = Lane(here)
            steps.lanes.append(mine.lane)
        lane: Lane = mine.lane
        with steps.timed("put"):
            _put_directly(lane, batch) if direct else lane.put(batch)
        with ExitStack() as turn:
            with steps.timed("wait for a turn"):
                turn.enter_context(gate)
            with steps.timed("compute"):
                there = lane.computed(made, batch, names)
        with steps.timed("fetch"):
            return lane.fetched(names, there)

    return run


def _put_directly(lane: Any, batch: Tensors) -> None:
    """CUDA copies from memory that is not pinned, in pieces of its own."""
    from ds_engines.cuda.memory import UP

    for name, array in batch.items():
        buffer = lane._buffer(f"in {name}", array.nbytes)
        buffer._copy(buffer.device, array.ctypes.data, array.nbytes, UP, lane._stream)
    lane._stream.wait()


WAYS: dict[str, Callable[[Path, str, Steps], Run]] = {
    "numpy": numpy,
    "numpy, plain settings": lambda *a: numpy(*a, plain=True),
    "numpy, channels last": lambda *a: numpy(*a, prefer_nhwc="1"),
    "numpy, bias fused": lambda *a: numpy(*a, fuse_conv_bias="1"),
    "numpy, exhaustive search": lambda *a: numpy(*a, cudnn_conv_algo_search="EXHAUSTIVE"),
    "bound": bound,
    "pinned": pinned,
    "pinned, 1 computes": lambda *a: pinned(*a, computing=1),
    "pinned, 2 compute": lambda *a: pinned(*a, computing=2),
    "pinned, 3 compute": lambda *a: pinned(*a, computing=3),
    "pinned, 1 MiB pieces": lambda *a: pinned(*a, piece=1 << 20),
    "pinned, one piece": lambda *a: pinned(*a, piece=1 << 30),
    "not pinned": lambda *a: pinned(*a, direct=True),
    "not pinned, 2 compute": lambda *a: pinned(*a, direct=True, computing=2),
    "pinned, channels last": lambda *a: pinned(*a, prefer_nhwc="1"),
}


def measured(way: str, kind: str, given: argparse.Namespace) -> dict[str, Any]:
    """Images/s and milliseconds by batch size and threads; a session for each size."""
    found: dict[str, Any] = {}
    file = models.path_of(given.models, kind, "onnxruntime")
    spec = engine.spec_of(given.models, kind, max(given.batches), "onnxruntime", "")
    for size in given.batches:
        for threads in given.threads:
            steps = Steps()
            run = WAYS[way](file, given.device, steps)
            batch = engine._batch(spec, given.models, size)
            rate = engine.rate(run, threads, batch, given.seconds)
            found[f"{size} x {threads}"] = {"images_s": rate, **steps.milliseconds()}
            del run
            for lane in steps.lanes:
                lane.free()
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    failed = 0
    for kind in given.kinds:
        results: dict[str, Any] = {}
        for way in given.ways:
            try:
                results[way] = measured(way, kind, given)
            except Exception:
                failed = 1
                results[way] = {"failed": traceback.format_exc(limit=1)}
            print(f"{kind}, {way}: {json.dumps(results[way])}", flush=True)
            (given.out / f"bindings-{kind}.json").write_text(json.dumps(results, indent=2))
    return failed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.gpu.bindings",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--kinds", nargs="+", default=["tf32", "fp16"], choices=models.KINDS)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 128])
    parser.add_argument("--threads", type=int, nargs="+", default=[4])
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    return parser


if __name__ == "__main__":
    sys.exit(main())
