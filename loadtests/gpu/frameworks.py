"""ONNX Runtime and PyTorch by themselves, as their own documentation has one use them.

Each is called with a batch, from several threads, and answers with arrays of the host's.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ds_engines.base import EngineOptions, Tensors


class OnnxRuntime:
    """One session, whose run takes and gives numpy arrays."""

    def __init__(self, file: Path, options: EngineOptions) -> None:
        import onnxruntime as ort

        settings = ort.SessionOptions()
        settings.intra_op_num_threads = options.threads
        providers: list[Any] = ["CPUExecutionProvider"]
        if options.device != "cpu":
            with contextlib.suppress(Exception):
                ort.preload_dlls()
            told = {"cudnn_conv_algo_search": "HEURISTIC"}
            providers.insert(0, ("CUDAExecutionProvider", told))
        self._session = ort.InferenceSession(file, settings, providers=providers)
        used = self._session.get_providers()[0]
        if options.device != "cpu" and used != "CUDAExecutionProvider":
            raise RuntimeError(f"ONNX Runtime took {used}")
        self.library = f"onnxruntime {ort.__version__} ({used})"

    def __call__(self, batch: Tensors) -> Any:
        return self._session.run(None, batch)


class PyTorch:
    """The program as a module; on a GPU each thread has a stream and pinned memory of its own."""

    def __init__(self, file: Path, options: EngineOptions) -> None:
        import torch
        from torch.export.passes import move_to_device_pass

        self._torch, self._gpu = torch, options.device != "cpu"
        torch.set_num_threads(options.threads)
        program = torch.export.load(file)
        if self._gpu:
            program = move_to_device_pass(program, "cuda")
        self._module = program.module()
        self._half = options.dtype == "fp16"
        self._mine = threading.local()
        self.library = f"torch {torch.__version__}"

    def __call__(self, batch: Tensors) -> Any:
        torch = self._torch
        given = [torch.from_numpy(array) for array in batch.values()]
        half = torch.autocast("cuda" if self._gpu else "cpu", torch.float16, enabled=self._half)
        with torch.inference_mode(), half:
            if not self._gpu:
                return self._module(*given).float().numpy()
            with torch.cuda.stream(self._stream()):
                there = [each.pin_memory().to("cuda", non_blocking=True) for each in given]
                return self._module(*there).float().cpu().numpy()

    def _stream(self) -> Any:
        if not hasattr(self._mine, "stream"):
            self._mine.stream = self._torch.cuda.Stream()
        return self._mine.stream


BARE: dict[str, Callable[[Path, EngineOptions], Any]] = {
    "onnxruntime": OnnxRuntime,
    "torch": PyTorch,
}
