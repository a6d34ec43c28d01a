"""Every layer's output of a program of torch.export, by PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.fx import Interpreter, Node
from torch.utils import _pytree as trees

from ds_engines.base import BatchEngine, EngineOptions, Tensors
from ds_engines.errors import EngineFailure, Unsupported
from ds_engines.numerics import Found, Step, counted, literals
from ds_engines.torch import TorchEngine
from ds_engines.torch_program import Exported, said


def inspector(engine: BatchEngine, options: EngineOptions) -> _Inspector:
    """See ds_engines.numerics. Raises Unsupported for files that are no graph."""
    assert isinstance(engine, TorchEngine), "the registry says so"
    if not isinstance(engine.program, Exported):
        raise Unsupported(
            f"--debug-numerics: {engine.spec.artifact} does not show its layers; give what "
            "torch.export saved"
        )
    return _Inspector(engine, engine.program)


class _Inspector:
    def __init__(self, engine: TorchEngine, program: Exported) -> None:
        self._engine, self._program = engine, program

    def run(self, batch: Tensors) -> tuple[Mapping[str, Found], list[Step]]:
        there = self._engine.device
        tensors = {name: tensor.to(there) for name, tensor in self._engine.tensors(batch).items()}
        watching = _Watching(self._program.module)
        try:
            with torch.inference_mode(), self._engine.precision.active():
                watching.run(*self._program.leaves(tensors), enable_io_processing=False)
        except Exception as error:
            raise EngineFailure(f"PyTorch failed: {said(error)}") from error
        return watching.given, watching.steps


class _Watching(Interpreter):  # type: ignore[misc, unused-ignore]
    """Runs a graph node by node and keeps what was found in each one's tensors."""

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.extra_traceback = False
        self.given: dict[str, Found] = {}
        self.steps: list[Step] = []

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        found = _found(result)
        if n.op in ("placeholder", "get_attr"):
            self.given |= dict.fromkeys([n.name], found[0]) if found else {}
        elif n.op != "output" and found:
            self._step(n, found)
        return result

    def _step(self, node: Node, found: list[Found]) -> None:
        """What a call is given are nodes, and numbers that stand in the graph."""
        own = f"{node.name} literals"
        leaves = trees.tree_leaves((node.args, dict(node.kwargs)))
        self.given[own] = literals(leaves)
        inputs = (own, *(each.name for each in node.all_input_nodes))
        self.steps.append(Step(place(node), str(node.target), inputs, {node.name: _whole(found)}))


def _found(result: Any) -> list[Found]:
    return [
        counted(_readable(each).detach().cpu().numpy())
        for each in trees.tree_leaves(result)
        if isinstance(each, torch.Tensor) and each.is_floating_point()
    ]


def _readable(tensor: torch.Tensor) -> torch.Tensor:
    """In a type that numpy has."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def _whole(found: list[Found]) -> Found:
    return Found(*(sum(column) for column in zip(*found, strict=True)))


def place(node: Node) -> str:
    """The node's name, after that of the module in which it is."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = str(stack[-1][0]) if stack and isinstance(stack[-1], tuple) else ""
    inside = path.removeprefix("L['self'].").removeprefix("L['self']")
    return f"{inside}/{node.name}" if inside else node.name
