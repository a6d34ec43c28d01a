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
    """

    threads: int = 1
    device: str = "cpu"
    quantization: str = ""
    memory_efficient: bool = False


def refuse(options: EngineOptions, engine: str, runs: str) -> None:
    """For engines that run what is in a file, and nothing else: raises Unsupported by name.

    `engine` is what a person calls it, `runs` what it does with a file.
    """
    if options.quantization:
        raise Unsupported(f"--quantization {options.quantization}: the {engine} engine runs {runs}")
    if options.memory_efficient:
        raise Unsupported(f"--memory-efficient: the {engine} engine has no such mode")


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
    module, _, name = found.partition(":")
    engine: BatchEngine = getattr(import_module(module), name)(spec, options)
    return engine
