"""Which TensorRT is there, and what its releases call differently.

TensorRT itself builds for the GPU it finds and runs there. TensorRT for RTX builds without one, and
its plans run on RTX GPUs from Turing on, but on none of a data centre.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from importlib import import_module, metadata
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from ds_engines.errors import LoadError

MODULES = {
    "tensorrt": ("tensorrt", "tensorrt_bindings"),
    "tensorrt_rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
"""Library to the modules that it may come as."""

INSTALL = (
    "install NVIDIA's TensorRT for this GPU's driver (on Jetson it is part of JetPack), or, for an "
    "RTX GPU, pip install 'ds-serve[tensorrt]'"
)

CUDA = "pip install 'ds-serve[cuda]'"

DATATYPES = {
    "BOOL": "BOOL",
    "UINT8": "UINT8",
    "INT8": "INT8",
    "INT32": "INT32",
    "INT64": "INT64",
    "HALF": "FP16",
    "BF16": "BF16",
    "FLOAT": "FP32",
}
"""TensorRT's name of a type to KServe's."""

_OLD = 9
"""The first release whose networks can be strongly typed, and that needs no help to be imported."""


class Library:
    """One TensorRT: `name` is one of MODULES, `api` its module."""

    def __init__(self, name: str, api: Any) -> None:
        self.name, self.api = name, api
        self.version: str = api.__version__

    def __str__(self) -> str:
        return f"{self.name} {self.version}"

    @property
    def typed(self) -> bool:
        """Whether a network's types are the file's. In older releases they are hints."""
        return hasattr(self.api.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")

    @property
    def timed(self) -> bool:
        """Whether a build measures kernels, so that a timing cache saves time."""
        return self.name == "tensorrt"

    def flag(self, name: str) -> Any:
        """A builder's flag; None where this release has none of that name."""
        return getattr(self.api.BuilderFlag, name, None)

    def context(self, engine: Any) -> Any:
        """A new execution context, whose memory is still to be given."""
        if hasattr(engine, "create_execution_context_without_device_memory"):
            return engine.create_execution_context_without_device_memory()
        return engine.create_execution_context(
            self.api.ExecutionContextAllocationStrategy.USER_MANAGED
        )

    def memory_size(self, engine: Any) -> int:
        """Bytes that one execution context works in."""
        size = getattr(engine, "device_memory_size_v2", None)
        return int(engine.device_memory_size if size is None else size)

    def give_memory(self, context: Any, address: int, size: int) -> None:
        """Let the context work in this memory, which contexts share that never run at once."""
        if hasattr(context, "set_device_memory"):
            context.set_device_memory(address, size)
        else:
            context.device_memory = address

    def prepare(self, config: Any) -> None:
        """Settings without which a plan of this release cannot be built or shared by contexts."""
        if self.typed:
            return
        preview: Any = getattr(self.api, "PreviewFeature", None)
        if hasattr(preview, "PROFILE_SHARING_0806"):
            config.set_preview_feature(preview.PROFILE_SHARING_0806, True)
        # Those of cuBLAS and cuDNN need libraries that later releases do without.
        sources = self.api.TacticSource
        wanted = (sources.EDGE_MASK_CONVOLUTIONS, sources.JIT_CONVOLUTIONS)
        config.set_tactic_sources(sum(1 << int(each) for each in wanted))


def gpu(library: Library) -> str:
    """The GPU that a plan built here is bound to; empty where it is bound to none.

    Raises Unsupported where there is none and the library builds for the one that it finds.
    """
    if library.name != "tensorrt":
        return ""
    try:
        from ds_engines.cuda import device  # noqa: PLC0415 - TensorRT for RTX builds without CUDA
    except ImportError as error:
        raise LoadError(f"TensorRT needs the package cuda-bindings: {CUDA}") from error
    return device.find("cuda").kind


def installed() -> str:
    """The name of the library that `require` would give, without importing it; empty for none."""
    there = (name for name, modules in MODULES.items() if any(map(_there, modules)))
    return next(there, "")


def require(wanted: str = "") -> Library:
    """The library of that name, or the first that is installed. Raises LoadError."""
    names = (wanted,) if wanted else tuple(MODULES)
    broken = []
    for name in names:
        for module in filter(_there, MODULES[name]):
            try:
                found = _imported(module)
            except (ImportError, OSError) as error:
                broken.append(f"{module} cannot be imported: {error}")
                continue
            if hasattr(found, "Builder"):  # packages of that name may be mere stubs
                return Library(name, found)
    why = "; ".join(broken) or f"{' or '.join(names)} is not installed"
    raise LoadError(f"{why}: {INSTALL}")


def _there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ValueError:
        return module in sys.modules


def _imported(name: str) -> ModuleType:
    with _linking(name):
        return import_module(name)


@contextlib.contextmanager
def _linking(module: str) -> Iterator[None]:
    """Release 8 looks up functions of one of its libraries in another."""
    if not _is_old(module):
        yield
        return
    before = sys.getdlopenflags()
    sys.setdlopenflags(os.RTLD_LAZY | os.RTLD_GLOBAL)
    try:
        yield
    finally:
        sys.setdlopenflags(before)


def _is_old(module: str) -> bool:
    try:
        version = metadata.version(module)
    except metadata.PackageNotFoundError:
        return False
    return int(version.partition(".")[0]) < _OLD and not module.startswith("tensorrt_rtx")


def log(library: Library, watch: Any = None) -> Any:
    """A logger that keeps the last error, which says more than what is returned. `watch` gets every
    message, with TensorRT's name of its severity. TensorRT's own plug-ins can be used from then on.
    """

    class Log(library.api.ILogger):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.last = "it does not say why"

        def log(self, severity: Any, message: str) -> None:
            if severity in (self.ERROR, self.INTERNAL_ERROR):
                self.last = message.strip().partition("\n")[0]
            if watch is not None:
                watch(severity.name, message)

    made = Log()
    if library.typed:
        # Release 8 finds in them what needs cuBLAS and cuDNN.
        library.api.init_libnvinfer_plugins(made, "")
    return made
