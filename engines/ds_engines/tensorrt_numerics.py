"""Every layer's output of an ONNX file, by a second plan that TensorRT builds with them all."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping

import msgspec

from ds_engines.base import BatchEngine, EngineOptions, Tensors
from ds_engines.cuda.ledger import Ledger
from ds_engines.errors import LoadError, ServeError, Unsupported
from ds_engines.numerics import Found, Step, counted, fixed, steps
from ds_engines.onnx_graph import Node, OnnxGraph
from ds_engines.tensorrt import TensorRTEngine, ports
from ds_engines.tensorrt_builder import build
from ds_engines.tensorrt_slot import Machine, Slot

REAL = ("FP32", "FP16", "BF16")

QUICK = 0
"""How long to look for quick kernels: not at all."""


def inspector(engine: BatchEngine, options: EngineOptions) -> _Inspector:
    """See ds_engines.numerics. What is inside of If and Loop is theirs. Raises Unsupported for
    plans.
    """
    assert isinstance(engine, TensorRTEngine), "the registry says so"
    if engine.source is None:
        raise Unsupported(
            f"--debug-numerics: {engine.spec.artifact} is a plan, which does not show its layers; "
            "give the ONNX file that it was built from"
        )
    try:
        return _Inspector(engine)
    except ServeError as error:
        raise LoadError(
            f"--debug-numerics: the layers of {engine.source} cannot be shown: {error}"
        ) from error


class _Inspector:
    """A plan of its own, in which no layers are joined whose outputs are wanted."""

    def __init__(self, engine: TensorRTEngine) -> None:
        assert engine.source is not None, "the caller has looked"
        graph = OnnxGraph(engine.source.read_bytes(), engine.source)
        self._nodes = [node for node in graph.nodes if node.outputs]
        self._constants = {
            name: counted(array, brain=brain) for name, array, brain in graph.constants
        }
        self._engine = engine
        self._machine = _machine(engine, {name for node in self._nodes for name in node.outputs})
        _require_room(engine, self._machine)
        self._slot = engine.keep(Slot(self._machine))
        self._alone = threading.Lock()

    def run(self, batch: Tensors) -> tuple[Mapping[str, Found], list[Step]]:
        kinds = {port.name: port.datatype for port in self._machine.outputs}
        shown = [name for name, kind in kinds.items() if kind in REAL]
        brains = {port.name for port in self._machine.inputs if port.datatype == "BF16"}
        given = {name: counted(array, brain=name in brains) for name, array in batch.items()}
        with self._alone:
            arrays = self._slot.run(self._engine.fitted(batch), shown)
        found = {
            name: counted(array, brain=kinds[name] == "BF16") for name, array in arrays.items()
        }
        known = self._constants | fixed(self._nodes, found) | given
        return known | _carried(self._nodes, known | found), steps(self._nodes, found)


def _carried(nodes: Iterable[Node], found: Mapping[str, Found]) -> dict[str, Found]:
    """What is in tensors that no plan shows, since they are worked out while it is built: NaN and
    infinity where they are made of what has some.
    """
    known, more = dict(found), {}
    for node in nodes:
        sources = (known[name] for name in node.inputs if name in known)
        worst = next((source for source in sources if source.bad), Found())
        for name in node.outputs:
            if name not in known:
                more[name] = known[name] = worst
    return more


def _machine(engine: TensorRTEngine, wanted: set[str]) -> Machine:
    assert engine.source is not None, "the caller has looked"
    options = msgspec.structs.replace(engine.options, level=QUICK, stripped=False)
    built = build(engine.library, engine.source, options, shown=wanted)
    plan = engine.opened(built.plan)
    inputs, outputs = ports(engine.spec, engine.library, plan)
    return engine.machine._replace(engine=plan, inputs=inputs, outputs=outputs, graphs=False)


def _require_room(engine: TensorRTEngine, machine: Machine) -> None:
    """Raises DoesNotFit where the outputs of all layers do not fit."""
    ledger = Ledger(engine.spec.name, str(machine.device), machine.device.free())
    for port in (*machine.inputs, *machine.outputs):
        ledger.need("outputs of all layers", port.size)
    ledger.need("work of --debug-numerics", machine.library.memory_size(machine.engine))
    ledger.check()
