"""TensorRT on NVIDIA GPUs: plans, and ONNX files, which are built into plans once."""

from __future__ import annotations

import contextlib
import logging
import threading
from pathlib import Path
from queue import Empty, LifoQueue
from typing import Any

import msgspec

from ds_engines import tensorrt_library, tensorrt_store
from ds_engines.base import DTYPE, MEMORY, NUMERICS, EngineOptions, Tensors, refuse
from ds_engines.batch_axes import complete, joined
from ds_engines.errors import EngineFailure, InvalidRequest, LoadError, ServeError, Unsupported
from ds_engines.precision import AUTO
from ds_engines.spec import ModelSpec
from ds_engines.tensorrt_builder import BuildOptions, Shapes
from ds_engines.tensorrt_library import DATATYPES, Library
from ds_engines.tensorrt_shapes import Port, cut, lengths, padded, ranged, rows
from ds_engines.tensorrt_store import is_plan

try:
    from ds_engines.cuda import device as devices
    from ds_engines.cuda.ledger import Ledger
    from ds_engines.cuda.turns import Turns
    from ds_engines.tensorrt_slot import Machine, Slot
except ImportError as error:
    raise Unsupported(
        f"TensorRT needs the package cuda-bindings ({error}): {tensorrt_library.CUDA}"
    ) from error

log = logging.getLogger(__name__)

SLOTS = 3
"""Batches at a time, unless the configuration says: one is copied to the device and one from it
while one is computed.
"""

TOLERANCE = 0.02
"""Of FP16, TF32 and INT8: by how much of its largest value a row may differ in another batch."""

RUNS = "a model in the types of its file; ds-quantize makes one that is quantized"


class TensorRTEngine:
    """One plan on one GPU; each slot that runs it has its own memory there.

    `source` is the ONNX file that it was built from, with `options`; None where the plan was given.
    """

    def __init__(self, spec: ModelSpec, options: EngineOptions) -> None:
        _refuse(spec, options)
        self._said = options
        self.source: Path | None = None
        self.options = BuildOptions()
        self.library = tensorrt_library.require()
        wanted = "cuda" if options.device == "auto" else options.device
        self._device = devices.find(wanted)
        self._device.use()
        self._log = tensorrt_library.log(self.library)
        self._runtime = self.library.api.Runtime(self._log)
        self.engine = self._opened(spec)
        inputs, outputs = ports(spec, self.library, self.engine)
        slots = spec.slots if spec.slots > 1 or options.memory_efficient else SLOTS
        self.machine = Machine(
            self.library,
            self.engine,
            self._log,
            self._device,
            inputs,
            outputs,
            graphs=not options.memory_efficient,
            turns=Turns(),
        )
        self._fewest, most = rows(inputs)
        self._free: LifoQueue[Slot] = LifoQueue()
        self._slots: list[Slot] = []
        self._growing = threading.Lock()
        self._full = False
        self._fits(spec, slots)
        self.spec = _described(msgspec.structs.replace(spec, slots=slots), inputs, outputs, most)
        self.spec = complete(self.spec, _Trial(self), lengths(inputs), TOLERANCE)

    def run(self, batch: Tensors, outputs: tuple[str, ...] = ()) -> Tensors:
        names = outputs or tuple(tensor.name for tensor in self.spec.outputs)
        given = self._rows(batch)
        padding = (given, self._padded(given))
        fitted = self.fitted(batch)
        slot = self._take()
        try:
            found = slot.run(fitted, names)
        finally:
            self._free.put(slot)
        axes = {tensor.name: tensor.batch_axis for tensor in self.spec.outputs}
        return {name: cut(found[name], axes[name], padding) for name in names}

    def close(self) -> None:
        for slot in self._slots:
            slot.free()
        # They hold the engine too.
        self._slots, self._free = [], LifoQueue()
        del self.machine, self.engine, self._runtime

    def _rows(self, batch: Tensors) -> int:
        joint = (port for port in self.machine.inputs if port.joint)
        return next((len(batch[port.name]) for port in joint), 0)

    def _padded(self, rows: int) -> int:
        return max(rows, self._fewest) if rows else 0

    def fitted(self, batch: Tensors) -> Tensors:
        """The batch with as many rows as the plan takes at least. Raises InvalidRequest where it is
        too large.
        """
        fewest = self._padded(self._rows(batch))
        fitted = {}
        for port in self.machine.inputs:
            array = batch[port.name]
            fitted[port.name] = padded(array, fewest) if port.joint else array
            port.check(fitted[port.name].shape)
        return fitted

    def _take(self) -> Slot:
        """One that is free, or a new one: no more are run at a time than the model has slots."""
        if self._full:
            return self._free.get()
        with contextlib.suppress(Empty):
            return self._free.get_nowait()
        with self._growing:
            try:
                slot = Slot(self.machine)
            except ServeError as error:
                if not self._slots:
                    raise
                log.warning(
                    "model %s: %d slots at most: %s", self.spec.name, len(self._slots), error
                )
                self._full = True
            else:
                self._slots.append(slot)
                return slot
        return self._free.get()

    def _opened(self, spec: ModelSpec) -> Any:
        """The engine of a plan, or of what is built from an ONNX file."""
        if not is_plan(spec.artifact):
            return self._built(spec, spec.artifact)
        why = tensorrt_store.misfit(
            tensorrt_store.facts(spec.artifact), self.library, self._device.kind
        )
        self._allow_code(self._said.trust)
        engine = None if why else self._read(spec, spec.artifact)
        if engine is not None:
            return engine
        why = why or self._log.last
        source = tensorrt_store.onnx_beside(spec.artifact)
        if source is None:
            raise LoadError(
                f"{spec.artifact} is a plan that cannot run here: {why}; put the ONNX file that it "
                "was built from beside it, or give that"
            )
        log.warning("%s cannot run here: %s; %s is built anew", spec.artifact, why, source.name)
        return self._built(spec, source)

    def _built(self, spec: ModelSpec, source: Path) -> Any:
        options = tensorrt_store.granted(tensorrt_store.options_of(spec), self._said)
        source, options = tensorrt_store.prepared(self.library, source, options)
        watch = tensorrt_store.steps(f"model {spec.name}")
        self.source, self.options = source, options
        plan = tensorrt_store.built(self.library, source, options, self._device.kind, watch)
        self._allow_code(options.compatible)
        engine = self._read(spec, plan)
        if engine is None:
            raise LoadError(f"{self.library} cannot run what it built: {self._log.last}")
        if options.stripped:
            self._refit(source, engine)
        return engine

    def _allow_code(self, allowed: bool) -> None:
        """Whether plans may bring code for this machine's processor, as those do that more than one
        release runs.
        """
        if hasattr(self._runtime, "engine_host_code_allowed"):
            self._runtime.engine_host_code_allowed = allowed

    def _read(self, spec: ModelSpec, plan: Path) -> Any:
        ledger = Ledger(spec.name, str(self._device), self._device.free())
        ledger.need("weights", plan.stat().st_size)
        ledger.check()
        return self._runtime.deserialize_cuda_engine(plan.read_bytes())

    def opened(self, plan: bytes) -> Any:
        """Another plan on the same device. Raises LoadError."""
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise LoadError(f"{self.library} cannot run what it built: {self._log.last}")
        return engine

    def keep(self, slot: Slot) -> Slot:
        """One that is not for batches, to be freed with the others."""
        self._slots.append(slot)
        return slot

    def _refit(self, source: Path, engine: Any) -> None:
        """Give a stripped plan its weights."""
        api = self.library.api
        refitter = api.Refitter(engine, self._log)
        parser = api.OnnxParserRefitter(refitter, self._log)
        if not parser.refit_from_file(str(source)) or not refitter.refit_cuda_engine():
            raise LoadError(f"{source} does not have the weights of its plan: {self._log.last}")

    def _fits(self, spec: ModelSpec, slots: int) -> None:
        """Raises LoadError where slots do not fit beside the weights, which are loaded."""
        ledger = Ledger(spec.name, str(self._device), self._device.free())
        for port in (*self.machine.inputs, *self.machine.outputs):
            ledger.need("inputs and outputs", slots * port.size)
        ledger.need(f"work of {slots} slots", slots * self.library.memory_size(self.engine))
        ledger.check()


class _Trial:
    """Runs what may not be within a plan's profile, which is no client's fault."""

    def __init__(self, engine: TensorRTEngine) -> None:
        self._engine = engine

    def run(self, batch: Tensors, outputs: tuple[str, ...] = ()) -> Tensors:
        try:
            return self._engine.run(batch, outputs)
        except InvalidRequest as error:
            raise EngineFailure(str(error)) from error


def _refuse(spec: ModelSpec, options: EngineOptions) -> None:
    if options.device == "cpu":
        raise Unsupported("--device cpu: the TensorRT engine runs on NVIDIA GPUs")
    refuse(options, "TensorRT", RUNS, DTYPE, MEMORY, NUMERICS)
    if options.dtype != AUTO and is_plan(spec.artifact):
        raise Unsupported(
            f"--dtype {options.dtype}: {spec.artifact} is a plan, whose numbers are those that it "
            "was built for; give the ONNX file that it was built from"
        )


def ports(
    spec: ModelSpec, library: Library, engine: Any
) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """What goes in and comes out. Raises LoadError for what cannot be served."""
    api, inputs, names = library.api, [], []
    for name in (engine.get_tensor_name(index) for index in range(engine.num_io_tensors)):
        kind = engine.get_tensor_dtype(name).name
        if kind not in DATATYPES:
            raise LoadError(f"{spec.artifact}: tensor {name!r} is of {kind}, which is not served")
        if engine.get_tensor_location(name) != api.TensorLocation.DEVICE:
            raise LoadError(f"{spec.artifact}: tensor {name!r} is a shape, which is not served")
        if engine.get_tensor_format(name) != api.TensorFormat.LINEAR:
            raise LoadError(f"{spec.artifact}: tensor {name!r} is not row after row")
        if engine.get_tensor_mode(name) != api.TensorIOMode.INPUT:
            names.append(name)
            continue
        inputs.append(ranged(name, DATATYPES[kind], _profile(engine, name)))
    return tuple(inputs), tuple(_outputs(library, engine, inputs, names))


def _profile(engine: Any, name: str) -> Shapes:
    fixed = tuple(engine.get_tensor_shape(name))
    if -1 not in fixed:
        return fixed, fixed, fixed
    low, usual, high = (tuple(shape) for shape in engine.get_tensor_profile_shape(name, 0))
    return low, usual, high


def _outputs(library: Library, engine: Any, inputs: list[Port], names: list[str]) -> list[Port]:
    """With the sizes that they have where the inputs are largest."""
    context = library.context(engine)
    for port in inputs:
        assert port.profile is not None, "inputs have one"
        context.set_input_shape(port.name, port.profile[2])
    found = []
    for name in names:
        datatype = DATATYPES[engine.get_tensor_dtype(name).name]
        port = Port(name, datatype, tuple(engine.get_tensor_shape(name)))
        most = tuple(context.get_tensor_shape(name))
        known = -1 not in most
        size = port.nbytes(most) if known else context.get_max_output_size(name)
        if size < 0:
            raise LoadError(f"output {name!r} has no largest size, so that it cannot be served")
        found.append(msgspec.structs.replace(port, size=size, known=known))
    return found


def _described(
    spec: ModelSpec, inputs: tuple[Port, ...], outputs: tuple[Port, ...], most: int
) -> ModelSpec:
    tensors = [port.spec for port in inputs]
    nameless = {tensor.name: tensor.shape for tensor in tensors}
    size = min(spec.batch.max_batch_size, most)
    return msgspec.structs.replace(
        spec,
        platform="tensorrt_plan",
        inputs=tuple(joined(tensors, nameless)),
        outputs=tuple(port.spec for port in outputs),
        batch=msgspec.structs.replace(spec.batch, max_batch_size=size),
    )
