"""Times of the layers of a program of torch.export, each run by itself."""

from __future__ import annotations

import operator
import time
from collections import defaultdict
from typing import Any

import torch
from torch.fx import Interpreter, Node

from ds_engines.base import EngineOptions, Tensors
from ds_engines.errors import EngineFailure, Unsupported
from ds_engines.layers import Layer, LayerProfile
from ds_engines.spec import ModelSpec
from ds_engines.torch import TorchEngine
from ds_engines.torch_numerics import place
from ds_engines.torch_program import Exported, said

WARM_UP = 5
FEWEST = 5


def profile(
    spec: ModelSpec, options: EngineOptions, batch: Tensors, seconds: float
) -> LayerProfile:
    """See ds_engines.layers.profile. After each layer a GPU is waited for, and what Python takes to
    call it counts as its own: shares tell more than sums.
    """
    engine = TorchEngine(spec, options)
    try:
        if not isinstance(engine.program, Exported):
            raise Unsupported(
                f"{spec.artifact} gives no times of layers; give what torch.export saved"
            )
        runs, whole = _whole(engine, batch, seconds / 2)
        return LayerProfile("torch", runs, whole, _layers(engine, engine.program, batch, seconds))
    finally:
        engine.close()


def _whole(engine: TorchEngine, batch: Tensors, seconds: float) -> tuple[int, float]:
    """Runs, and microseconds of each."""
    for _ in range(WARM_UP):
        engine.run(batch)
    runs, began = 0, time.perf_counter()
    while runs < FEWEST or time.perf_counter() - began < seconds:
        engine.run(batch)
        runs += 1
    return runs, (time.perf_counter() - began) / runs * 1e6


def _layers(
    engine: TorchEngine, program: Exported, batch: Tensors, seconds: float
) -> tuple[Layer, ...]:
    given = {name: tensor.to(engine.device) for name, tensor in engine.tensors(batch).items()}
    timed = _Timed(program.module, engine.device)
    began = time.perf_counter()
    try:
        with torch.inference_mode(), engine.precision.active():
            for _ in range(WARM_UP):
                timed.run(*program.leaves(given), enable_io_processing=False)
            timed.forget()
            while timed.runs < FEWEST or time.perf_counter() - began < seconds / 2:
                timed.run(*program.leaves(given), enable_io_processing=False)
                timed.runs += 1
    except Exception as error:
        raise EngineFailure(f"PyTorch failed: {said(error)}") from error
    return tuple(
        Layer(place(node), str(node.target), took / timed.runs * 1e6)
        for node, took in timed.seconds.items()
    )


class _Timed(Interpreter):  # type: ignore[misc, unused-ignore]
    """Runs a graph node by node and keeps the time of each."""

    def __init__(self, module: Any, device: torch.device) -> None:
        super().__init__(module)
        self.extra_traceback = False
        self._waits = device.type != "cpu"
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self.runs = 0
        self.seconds: dict[Node, float] = defaultdict(float)

    def run_node(self, n: Node) -> Any:
        began = time.perf_counter()
        result = super().run_node(n)
        if self._waits:
            torch.cuda.synchronize()
        if n.op == "call_function" and n.target != operator.getitem:
            self.seconds[n] += time.perf_counter() - began
        return result
