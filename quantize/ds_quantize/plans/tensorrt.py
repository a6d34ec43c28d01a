"""TensorRT plans from ONNX files, by TensorRT itself or by TensorRT for RTX.

The former builds for the GPU it finds. The latter needs none, and its plans run on any RTX GPU
from Turing on, but on none of a data centre.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from types import ModuleType
from typing import Any

from ds_quantize.context import Context
from ds_quantize.errors import MethodError, MissingExtra
from ds_quantize.forms import Model, PlanModel
from ds_quantize.methods.onnx import TensorRT
from ds_quantize.onnx_methods import graph
from ds_quantize.plans.plan_progress import Done, monitor, steps

MODULES = {
    "tensorrt": ("tensorrt",),
    "tensorrt_rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
"""Library to the modules that it may come as."""

FILE = "model.plan"


def tensorrt(model: Model, method: TensorRT, context: Context) -> PlanModel:
    """Handler of `tensorrt`."""
    name, library = _library(method.library)
    source = graph.path_of(model)
    builder = _Builder(library, source, method)
    plan = context.folder / FILE
    plan.write_bytes(_watched(builder, context))
    version = f"{name} {library.__version__}"
    context.measured["plan"] = {"library": version, "bytes": plan.stat().st_size}
    return PlanModel(plan, version)


def _library(wanted: str) -> tuple[str, ModuleType]:
    """The library of that name, or the first that is installed. Raises MissingExtra."""
    names = (wanted,) if wanted else tuple(MODULES)
    for name in names:
        for module in MODULES[name]:
            try:
                found = import_module(module)
            except ImportError:
                continue
            if hasattr(found, "Builder"):
                return name, found
    raise MissingExtra(
        f"a TensorRT plan needs {' or '.join(map(repr, names))}: "
        'pip install "ds-serve[tensorrt]" for TensorRT for RTX'
    )


def _watched(builder: _Builder, context: Context) -> bytes:
    """Build in a thread of its own, while this one shows how far it is."""
    events: SimpleQueue[Any] = SimpleQueue()
    builder.watch(monitor(builder.library, events))

    def run() -> None:
        try:
            events.put(Done(builder.build()))
        except Exception as error:
            events.put(Done(error=error))

    Thread(target=run, daemon=True).start()
    done = Done()
    for event in context.progress.track(steps(events), "Plan"):
        done = event if isinstance(event, Done) else done
    if done.error is not None:
        raise done.error
    return done.plan


class _Builder:
    """One ONNX file, read into a network. Raises MethodError that names the layer."""

    def __init__(self, library: ModuleType, source: Path, method: TensorRT) -> None:
        self.library, self.source, self.method = library, source, method
        self.log = _log(library)
        self._builder = library.Builder(self.log)
        self._typed = hasattr(library.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")
        self._network = self._builder.create_network(self._flags())
        self._parse()
        self._config = self._builder.create_builder_config()
        self._configure()
        self._add_profile()

    def watch(self, progress: Any) -> None:
        """Tell this monitor how far it is; releases before 9 have none."""
        if progress is not None:
            self._config.progress_monitor = progress

    def build(self) -> bytes:
        """The plan. Takes seconds to minutes."""
        plan = self._builder.build_serialized_network(self._network, self._config)
        if plan is None:
            raise MethodError(f"TensorRT cannot build {self.source.name}: {self.log.last}")
        return bytes(plan)

    def _flags(self) -> int:
        flags = self.library.NetworkDefinitionCreationFlag
        # Up to release 8 types are hints, and batches have to be asked for.
        return 1 << int(flags.STRONGLY_TYPED if self._typed else flags.EXPLICIT_BATCH)

    def _parse(self) -> None:
        parser = self.library.OnnxParser(self._network, self.log)
        if parser.parse_from_file(str(self.source)):
            return
        problem = parser.get_error(0) if parser.num_errors else None
        layer = f"{self._layer(problem)}: " if problem else ""
        said = problem.desc() if problem else self.log.last
        raise MethodError(f"TensorRT does not take {self.source.name}: {layer}{said}")

    def _layer(self, problem: Any) -> str:
        """Which node a parser's error is of; release 8 knows its place alone."""
        if hasattr(problem, "node_name"):
            return f"layer {problem.node_name()!r} ({problem.node_operator()})"
        return f"node {problem.node()} of the graph"

    def _configure(self) -> None:
        if self.method.level is not None:
            self._config.builder_optimization_level = self.method.level
        if self.method.workspace is not None:
            pool = self.library.MemoryPoolType.WORKSPACE
            self._config.set_memory_pool_limit(pool, self.method.workspace << 20)
        if not self._typed:
            self._config.set_flag(self.library.BuilderFlag.FP16)
            self._config.set_flag(self.library.BuilderFlag.INT8)

    def _add_profile(self) -> None:
        profile = self._builder.create_optimization_profile()
        inputs = [self._network.get_input(index) for index in range(self._network.num_inputs)]
        dynamic = [tensor for tensor in inputs if -1 in tuple(tensor.shape)]
        self._check_shapes([tensor.name for tensor in inputs])
        for tensor in dynamic:
            profile.set_shape(tensor.name, *self._shapes(tensor.name, tuple(tensor.shape)))
        if dynamic:
            self._config.add_optimization_profile(profile)

    def _check_shapes(self, inputs: list[str]) -> None:
        unknown = [name for name in self.method.shapes if name not in inputs]
        if unknown:
            raise MethodError(
                f"tensorrt: shapes names {unknown[0]!r}; inputs are {', '.join(map(repr, inputs))}"
            )

    def _shapes(self, name: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """The smallest, usual and largest shape of an input."""
        if name in self.method.shapes:
            return self.method.shapes[name]
        if -1 in shape[1:]:
            raise MethodError(
                f"tensorrt: input {name!r} has the shape {list(shape)}, which varies in more than "
                "the batch; give its smallest, usual and largest shape as shapes"
            )
        return tuple((batch, *shape[1:]) for batch in self.method.batches)


def _log(library: ModuleType) -> Any:
    class Log(library.ILogger):  # type: ignore[name-defined, misc]
        """Keeps the last error, which says more than what is returned."""

        def __init__(self) -> None:
            super().__init__()
            self.last = "it does not say why"

        def log(self, severity: Any, message: str) -> None:
            if severity in (self.ERROR, self.INTERNAL_ERROR):
                self.last = message.strip().partition("\n")[0]

    return Log()
