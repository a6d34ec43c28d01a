"""Every layer's output of an ONNX file, by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnxruntime as ort

from ds_engines.base import BatchEngine, EngineOptions, Tensors
from ds_engines.errors import EngineFailure, LoadError, ServeError
from ds_engines.numerics import Found, Step, counted, fixed, steps
from ds_engines.onnx_graph import OnnxGraph
from ds_engines.onnxruntime import OnnxRuntimeEngine
from ds_engines.onnxruntime_devices import providers
from ds_engines.onnxruntime_session import first_line, opened, settings, source

_REAL = ("tensor(float)", "tensor(float16)", "tensor(double)", "tensor(bfloat16)")
_BRAIN = "tensor(bfloat16)"


def inspector(engine: BatchEngine, options: EngineOptions) -> _Inspector:
    """See ds_engines.numerics. What is inside of If, Loop and Scan is theirs."""
    assert isinstance(engine, OnnxRuntimeEngine), "the registry says so"
    return _Inspector(engine, options)


class _Inspector:
    """A session of its own, without what joins layers into one: it holds the weights again."""

    def __init__(self, engine: OnnxRuntimeEngine, options: EngineOptions) -> None:
        artifact = engine.spec.artifact
        try:
            self._open(artifact, engine, options)
        except Exception as error:
            raise LoadError(
                f"--debug-numerics: the layers of {artifact} cannot be shown: {first_line(error)}"
            ) from error

    def _open(self, artifact: Path, engine: OnnxRuntimeEngine, options: EngineOptions) -> None:
        model = source(artifact, engine.choice, options)
        graph = OnnxGraph(artifact.read_bytes() if isinstance(model, Path) else model, artifact)
        self._engine = engine
        self._nodes = [node for node in graph.nodes if node.outputs]
        self._constants = {
            name: counted(array, brain=brain) for name, array, brain in graph.constants
        }
        wanted = [name for node in self._nodes for name in node.outputs]
        made = settings(options, artifact.parent)
        made.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._session = opened(graph.with_outputs(wanted), made, providers(engine.choice, options))
        kinds = {node.name: node.type for node in self._session.get_outputs()}
        text = any(tensor.datatype == "BYTES" for tensor in engine.spec.inputs)
        shown = [kind for kind in _REAL if not (text and kind == _BRAIN)]
        self._kinds = {name: kinds[name] for name in wanted if kinds.get(name) in shown}
        self._as_values = not text

    def run(self, batch: Tensors) -> tuple[Mapping[str, Found], list[Step]]:
        brains = {tensor.name for tensor in self._engine.spec.inputs if tensor.datatype == "BF16"}
        given = {name: counted(array, brain=name in brains) for name, array in batch.items()}
        try:
            arrays = self._engine.computed(
                self._session, batch, list(self._kinds), as_values=self._as_values
            )
        except ServeError:
            raise
        except Exception as error:
            raise EngineFailure(f"ONNX Runtime failed: {first_line(error)}") from error
        found = {
            name: counted(array, brain=self._kinds[name] == _BRAIN)
            for name, array in arrays.items()
        }
        return self._constants | fixed(self._nodes, found) | given, steps(self._nodes, found)
