"""What every batch engine offers, and the registry that finds one by name."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import msgspec

from ds_engines import plugins
from ds_engines.errors import ConfigError, Unsupported
from ds_engines.spec import ModelSpec

if TYPE_CHECKING:
    # The supervisor, which has no tensors, imports this module as well.
    import numpy as np

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
Tensors: TypeAlias = "dict[str, Array]"
"""Name to array. BYTES tensors are object arrays of bytes, BF16 tensors uint16 bit patterns."""


class EngineOptions(msgspec.Struct, frozen=True):
    """What the machine and the operator grant an engine. An engine refuses by name what it
    cannot honour: `threads` of CPU, a `device` such as `cpu` or `cuda:0`.

    `dtype`: the numbers to compute in, one of ds_engines.precision; `debug_numerics`: find the
    layer that yields NaN or infinity; `trust`: run files that hold code of their own.
    """

    threads: int = 1
    device: str = "cpu"
    quantization: str = ""
    memory_efficient: bool = False
    dtype: str = "auto"
    debug_numerics: bool = False
    trust: bool = False


DTYPE, MEMORY, NUMERICS = "dtype", "memory_efficient", "debug_numerics"
"""Options that some engines honour."""


def refuse(options: EngineOptions, engine: str, runs: str, *honoured: str) -> None:
    """For engines that run what is in a file, and nothing else: raises Unsupported by name.

    `engine` is what a person calls it, `runs` what it does with a file; `honoured` are options that
    it does take.
    """
    if options.quantization:
        raise Unsupported(f"--quantization {options.quantization}: the {engine} engine runs {runs}")
    if options.dtype != "auto" and DTYPE not in honoured:
        raise Unsupported(f"--dtype {options.dtype}: the {engine} engine runs {runs}")
    if options.memory_efficient and MEMORY not in honoured:
        raise Unsupported(f"--memory-efficient: the {engine} engine has no such mode")
    if options.debug_numerics and NUMERICS not in honoured:
        raise Unsupported(f"--debug-numerics: the {engine} engine does not show its layers")


def refuse_devices(options: EngineOptions, engine: str) -> None:
    """Raises Unsupported for another device than the CPU."""
    if options.device not in ("cpu", "auto"):
        raise Unsupported(f"--device {options.device}: the {engine} engine runs on cpu")


class BatchEngine(Protocol):
    """Runs whole batches. One instance serves several slots: `run` is called from many threads.

    `spec` is complete once the engine is loaded: absent inputs and outputs are read from the
    model file.
    """

    spec: ModelSpec

    def run(self, batch: Tensors, outputs: tuple[str, ...] = ()) -> Tensors:
        """Run one batch and return the outputs named (all of them where none is).

        Blocks, and releases the interpreter lock meanwhile. Raises EngineFailure.
        """

    def close(self) -> None:
        """Free the model's memory. No `run` may be under way."""


ENGINES = {
    "onnxruntime": "ds_engines.onnxruntime:OnnxRuntimeEngine",
    "openvino": "ds_engines.openvino:OpenVINOEngine",
    "tensorrt": "ds_engines.tensorrt:TensorRTEngine",
    "torch": "ds_engines.torch:TorchEngine",
    "python": "ds_engines.python_backend.engine:PythonEngine",
}
"""Engine name to `module:class`; the module is imported when the engine is first asked for."""


INSPECTORS = {
    "onnxruntime": "ds_engines.onnxruntime_numerics:inspector",
    "openvino": "ds_engines.openvino_numerics:inspector",
    "tensorrt": "ds_engines.tensorrt_numerics:inspector",
    "torch": "ds_engines.torch_numerics:inspector",
}
"""Engine name to `module:function` of what shows its layers (see ds_engines.numerics)."""


def require_inspector(engine: str) -> None:
    """Raises Unsupported for an engine whose layers cannot be looked into."""
    if engine not in INSPECTORS:
        raise Unsupported(
            f"--debug-numerics: {engine} does not show its layers; of engines, "
            f"{', '.join(INSPECTORS)} do: serve the model's ONNX file, or its program, by one"
        )


def load(spec: ModelSpec, options: EngineOptions) -> BatchEngine:
    """Load the model with the engine that the spec names.

    Raises ConfigError for an unknown engine, Unsupported for an option that the engine cannot
    honour, LoadError for a file that it cannot load.
    """
    # Whatever is installed is looked through only for an engine that is not ours.
    found = ENGINES.get(spec.engine) or plugins.engines().get(spec.engine)
    if found is None:
        there = ", ".join(plugins.engines() | ENGINES)
        raise ConfigError(f"no engine is called {spec.engine!r}; there are: {there}")
    if options.debug_numerics:
        require_inspector(spec.engine)
    module, _, name = found.partition(":")
    engine: BatchEngine = getattr(import_module(module), name)(spec, options)
    if options.debug_numerics:
        from ds_engines.numerics import NumericsEngine  # noqa: PLC0415 - which imports this

        return NumericsEngine(engine, options)
    return engine
