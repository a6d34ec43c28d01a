"""TensorRT plans from ONNX files.

Types are those of the file: INT8 and FP8 where it has QuantizeLinear and DequantizeLinear, FP16 and
BF16 where it has those types. Matrix products in FP32 are done in TF32 where the GPU has it, unless
FP32 is asked for. Where types are hints, as they may be up to release 10, FP16 and BF16 are used
where they are quicker if they are asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from ds_engines.errors import LoadError
from ds_engines.precision import BF16, FP16, FP32
from ds_engines.tensorrt_layers import PlanLayer, told
from ds_engines.tensorrt_library import DATATYPES, Library, log
from ds_engines.tensorrt_progress import Watch, monitor
from ds_engines.tensorrt_timings import Timings

Shape = tuple[int, ...]
Shapes = tuple[Shape, Shape, Shape]
"""The smallest, the usual and the largest."""

_REAL = ("FLOAT", "HALF", "BF16")

_LISTS = ("Layers:", "Engine Layer Information:")


class BuildOptions(msgspec.Struct, frozen=True):
    """What a plan is to be.

    `batches`: the smallest, usual and largest number of rows. `shapes`: for inputs with other
    dynamic axes, their whole shapes. `level`: how long to look for quick kernels, 0 to 5.
    `workspace`: MiB that a layer may work in. `sparse`: use that 2 of 4 weights are zero, where it
    is so. `compatible`: a plan that later releases run too. `stripped`: without weights, which are
    taken from the ONNX file when it is loaded. `dla`: the Jetson's accelerator to run on, with the
    GPU for what it cannot do. `dtype`: one of ds_engines.precision.
    """

    batches: tuple[int, int, int] = (1, 8, 32)
    shapes: dict[str, Shapes] = {}
    level: int | None = None
    workspace: int | None = None
    sparse: bool = False
    compatible: bool = False
    stripped: bool = False
    dla: int | None = None
    dtype: Literal["auto", "fp32", "fp16", "bf16"] = "auto"


class PlanTensor(msgspec.Struct, frozen=True):
    """An input or output. `shape` has -1 where it varies, within `profile` if it is an input."""

    name: str
    datatype: str
    shape: Shape
    profile: Shapes | None = None


class Built(msgspec.Struct, frozen=True):
    """A plan, and what is in it."""

    plan: bytes
    inputs: tuple[PlanTensor, ...]
    outputs: tuple[PlanTensor, ...]
    layers: tuple[PlanLayer, ...]


def build(
    library: Library,
    source: Path,
    options: BuildOptions,
    *,
    watch: Watch | None = None,
    timing_cache: Path | None = None,
    shown: Collection[str] = (),
) -> Built:
    """Build the ONNX file `source`, which takes seconds to minutes.

    `timing_cache` is a file in which what was measured is kept for the next time. `shown` are
    tensors within the network that become outputs, as far as they hold real numbers. Raises
    LoadError that names the layer which TensorRT does not take, or the option that does not fit.
    """
    builder = _Builder(library, source, options)
    builder.show(shown)
    builder.watch(watch)
    if timing_cache is None or not library.timed:
        return builder.build()
    with Timings(builder.config, timing_cache):
        return builder.build()


class _Builder:
    """One ONNX file, read into a network."""

    def __init__(self, library: Library, source: Path, options: BuildOptions) -> None:
        self.library, self.source, self.options = library, source, options
        self._typed = library.typed and options.dtype not in (FP16, BF16)
        self._require_types()
        self._layers: tuple[PlanLayer, ...] = ()
        self.log = log(library, self._heard)
        self._builder = library.api.Builder(self.log)
        self._network = self._builder.create_network(self._flags())
        self._parse()
        self._require_fixed()
        self.config = self._builder.create_builder_config()
        self._configure()
        self._profiles = self._add_profile()

    def watch(self, watch: Watch | None) -> None:
        """Tell it how far this is; releases before 9 cannot."""
        made = monitor(self.library, watch) if watch is not None else None
        if made is not None:
            self.config.progress_monitor = made

    def show(self, names: Collection[str]) -> None:
        """Make outputs of these tensors, where they are there and no shapes."""
        there = {tensor.name for tensor in self._outputs()}
        for layer in [self._network.get_layer(at) for at in range(self._network.num_layers)]:
            for tensor in (layer.get_output(at) for at in range(layer.num_outputs)):
                real = tensor.dtype.name in _REAL and not getattr(tensor, "is_shape_tensor", False)
                if real and tensor.name in names and tensor.name not in there:
                    there.add(tensor.name)
                    self._network.mark_output(tensor)

    def build(self) -> Built:
        plan = self._builder.build_serialized_network(self._network, self.config)
        if plan is None:
            raise LoadError(f"TensorRT cannot build {self.source.name}: {self.log.last}")
        return Built(
            plan=bytes(plan),
            inputs=tuple(self._described(tensor) for tensor in self._inputs()),
            outputs=tuple(self._described(tensor) for tensor in self._outputs()),
            layers=self._layers,
        )

    def _heard(self, severity: str, message: str) -> None:
        if severity == "VERBOSE" and message.startswith(_LISTS):
            self._layers = told(message)

    def _require_types(self) -> None:
        """Raises LoadError where a release that has the file's types alone is asked for others."""
        wanted = self.options.dtype.upper()
        if self.library.typed and not self._typed and not self.library.flag(wanted):
            raise LoadError(
                f"--dtype {self.options.dtype}: {self.library} builds {self.source.name} in the "
                f"types that it has; give a file of {wanted}, or --dtype fp16"
            )

    def _flags(self) -> int:
        flags = self.library.api.NetworkDefinitionCreationFlag
        if self._typed:
            return 1 << int(flags.STRONGLY_TYPED)
        # Up to release 8 batches have to be asked for.
        return 0 if self.library.typed else 1 << int(flags.EXPLICIT_BATCH)

    def _parse(self) -> None:
        parser = self.library.api.OnnxParser(self._network, self.log)
        if parser.parse_from_file(str(self.source)):
            return
        problem = parser.get_error(0) if parser.num_errors else None
        layer = f"{_layer(problem)}: " if problem else ""
        said = problem.desc() if problem else self.log.last
        raise LoadError(f"TensorRT does not take {self.source.name}: {layer}{said}")

    def _inputs(self) -> list[Any]:
        return [self._network.get_input(index) for index in range(self._network.num_inputs)]

    def _outputs(self) -> list[Any]:
        return [self._network.get_output(index) for index in range(self._network.num_outputs)]

    def _described(self, tensor: Any) -> PlanTensor:
        datatype = DATATYPES.get(tensor.dtype.name, tensor.dtype.name)
        shape = tuple(tensor.shape)
        return PlanTensor(tensor.name, datatype, shape, self._profiles.get(tensor.name))

    def _configure(self) -> None:
        options, api = self.options, self.library.api
        self.library.prepare(self.config)
        # Else a plan does not tell the types of its layers.
        self.config.profiling_verbosity = api.ProfilingVerbosity.DETAILED
        if options.level is not None:
            self.config.builder_optimization_level = options.level
        if options.workspace is not None:
            pool = api.MemoryPoolType.WORKSPACE
            self.config.set_memory_pool_limit(pool, options.workspace << 20)
        for name in self._wanted_flags():
            self._set(name)
        if options.dtype == FP32:
            self.config.clear_flag(api.BuilderFlag.TF32)
        if options.dla is not None:
            self._use_dla(options.dla)

    def _wanted_flags(self) -> Iterator[str]:
        if self.options.sparse:
            yield "SPARSE_WEIGHTS"
        if self.options.compatible:
            yield "VERSION_COMPATIBLE"
        if self.options.stripped:
            yield "STRIP_PLAN"
        if not self._typed:
            asked = {self.options.dtype.upper()} & {"FP16", "BF16"}
            yield from sorted((self._types_in_file() & {"FP16", "INT8"}) | asked)

    def _types_in_file(self) -> set[str]:
        """What a release whose types are hints may use, so that it uses what the file has."""
        api, found = self.library.api, set()
        for layer in (self._network.get_layer(at) for at in range(self._network.num_layers)):
            if layer.type == api.LayerType.QUANTIZE:
                found.add("INT8")
            for at in range(layer.num_outputs):
                found.add(DATATYPES.get(layer.get_output(at).dtype.name, ""))
        return found

    def _set(self, name: str) -> None:
        flag = self.library.flag(name)
        if flag is None:
            raise LoadError(f"{self.library} has no {name.lower().replace('_', ' ')}")
        self.config.set_flag(flag)

    def _require_fixed(self) -> None:
        """Raises LoadError for shapes that vary, with which the GPU would do all in place of the
        accelerator.
        """
        if self.options.dla is None:
            return
        for tensor in self._inputs():
            low, *_, high = self._shapes(tensor) if -1 in tuple(tensor.shape) else ((), ())
            if low != high:
                raise LoadError(
                    f"dla: such an accelerator takes no shapes that vary, and input "
                    f"{tensor.name!r} may be {list(low)} to {list(high)}; set max_batch_size to 1, "
                    "or give the same shape three times as shapes"
                )

    def _use_dla(self, core: int) -> None:
        there = getattr(self._builder, "num_DLA_cores", 0)
        if not 0 <= core < there:
            raise LoadError(
                f"dla is {core}, but {self.library} finds {there or 'no'} DLA cores on this machine"
            )
        self.config.default_device_type = self.library.api.DeviceType.DLA
        self.config.DLA_core = core
        self._set("GPU_FALLBACK")

    def _add_profile(self) -> dict[str, Shapes]:
        profile = self._builder.create_optimization_profile()
        inputs = self._inputs()
        unknown = sorted(set(self.options.shapes) - {tensor.name for tensor in inputs})
        if unknown:
            names = ", ".join(repr(tensor.name) for tensor in inputs)
            raise LoadError(f"shapes names {unknown[0]!r}; inputs are {names}")
        for tensor in inputs:
            if getattr(tensor, "is_shape_tensor", False):
                raise LoadError(
                    f"{self.source.name}: input {tensor.name!r} is a shape, which other tensors "
                    "take on; TensorRT plans with such inputs are not built here"
                )
        shapes = {t.name: self._shapes(t) for t in inputs if -1 in tuple(t.shape)}
        for name, three in shapes.items():
            profile.set_shape(name, *three)
        if shapes and self.config.add_optimization_profile(profile) < 0:
            raise LoadError(f"TensorRT refuses the shapes {shapes}: {self.log.last}")
        return shapes

    def _shapes(self, tensor: Any) -> Shapes:
        """The smallest, usual and largest shape of an input."""
        name, shape = tensor.name, tuple(tensor.shape)
        if name in self.options.shapes:
            return self._given(name, shape)
        if -1 in shape[1:]:
            raise LoadError(
                f"input {name!r} has the shape {list(shape)}, which varies in more than "
                "the batch; give its smallest, usual and largest shape as shapes"
            )
        low, usual, high = ((rows, *shape[1:]) for rows in self.options.batches)
        return low, usual, high

    def _given(self, name: str, shape: Shape) -> Shapes:
        three = self.options.shapes[name]
        for given in three:
            fits = zip(given, shape, strict=False)
            if len(given) != len(shape) or any(own not in (-1, size) for size, own in fits):
                raise LoadError(
                    f"shapes has {list(given)} for input {name!r}, whose shape is {list(shape)}"
                )
        if any(not low <= usual <= high for low, usual, high in zip(*three, strict=True)):
            raise LoadError(
                f"shapes of input {name!r} must be its smallest, usual and largest, and are "
                f"{', '.join(str(list(each)) for each in three)}"
            )
        return three


def _layer(problem: Any) -> str:
    """Which node a parser's error is of; release 8 knows its place alone."""
    if hasattr(problem, "node_name"):
        return f"layer {problem.node_name()!r} ({problem.node_operator()})"
    return f"node {problem.node()} of the graph"
