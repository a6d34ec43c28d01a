"""A stand-in for TensorRT 8.6 on a machine without a GPU, for tests: a plan holds the ONNX file,
which ONNX Runtime runs on the CPU. It shows what the engine does around TensorRT; TensorRT itself
it does not show.
"""

from __future__ import annotations

import ctypes
import enum
import pickle
from types import SimpleNamespace
from typing import Any

import cuda_on_cpu
import numpy as np
import onnx
import onnxruntime

cuda_on_cpu.install()

__version__ = "8.6.1"


def _names(name: str, members: str) -> Any:
    return enum.IntEnum(name, [(each, at) for at, each in enumerate(members.split())])


DataType = _names("DataType", "FLOAT HALF INT8 INT32 BOOL UINT8")
BuilderFlag = _names("BuilderFlag", "FP16 INT8 SPARSE_WEIGHTS VERSION_COMPATIBLE TF32")
NetworkDefinitionCreationFlag = _names("NetworkDefinitionCreationFlag", "EXPLICIT_BATCH")
ProfilingVerbosity = _names("ProfilingVerbosity", "LAYER_NAMES_ONLY NONE DETAILED")
MemoryPoolType = _names("MemoryPoolType", "WORKSPACE")
TacticSource = _names("TacticSource", "A B C EDGE_MASK_CONVOLUTIONS JIT_CONVOLUTIONS")
PreviewFeature = _names("PreviewFeature", "FASTER PROFILE_SHARING_0806")
TensorLocation = _names("TensorLocation", "DEVICE HOST")
TensorFormat = _names("TensorFormat", "LINEAR CHW2")
TensorIOMode = _names("TensorIOMode", "NONE INPUT OUTPUT")
LayerType = _names("LayerType", "OTHER QUANTIZE")
Severity = _names("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")

_ONNX = {1: "FLOAT", 2: "UINT8", 3: "INT8", 6: "INT32", 7: "INT32", 9: "BOOL", 10: "HALF"}
_NUMPY = {"FLOAT": "f4", "HALF": "f2", "INT8": "i1", "INT32": "i4", "BOOL": "?", "UINT8": "u1"}


class ILogger:
    INTERNAL_ERROR, ERROR = Severity.INTERNAL_ERROR, Severity.ERROR


class IOutputAllocator: ...


class IProfiler: ...


def _tensor(value: Any) -> Any:
    kind = value.type.tensor_type
    shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim)
    return SimpleNamespace(name=value.name, dtype=DataType[_ONNX[kind.elem_type]], shape=shape)


class Network:
    def read(self, path: str) -> None:
        self.model = onnx.shape_inference.infer_shapes(onnx.load(path))
        graph = self.model.graph
        self.inputs = [_tensor(value) for value in graph.input]
        self.outputs = [_tensor(value) for value in graph.output]
        known = {value.name: _tensor(value) for value in (*graph.value_info, *graph.output)}
        self.layers = [
            [known[name] for name in node.output if name in known]
            for node in graph.node
            if node.op_type != "Constant"
        ]
        self.num_inputs, self.num_outputs = len(self.inputs), len(self.outputs)
        self.num_layers = len(self.layers)

    def get_input(self, at: int) -> Any:
        return self.inputs[at]

    def get_output(self, at: int) -> Any:
        return self.outputs[at]

    def get_layer(self, at: int) -> Any:
        found = self.layers[at]
        return SimpleNamespace(
            type=LayerType.OTHER, num_outputs=len(found), get_output=lambda number: found[number]
        )

    def mark_output(self, tensor: Any) -> None:
        self.outputs.append(tensor)
        self.num_outputs += 1
        self.model.graph.output.add(name=tensor.name)


class OnnxParser:
    num_errors = 0

    def __init__(self, network: Network, log: Any) -> None:
        self._network = network

    def parse_from_file(self, path: str) -> bool:
        self._network.read(path)
        return True


class Config:
    def __init__(self) -> None:
        self.profile: dict[str, Any] = {}
        self.flags: set[int] = set()

    def set_flag(self, flag: int) -> None:
        self.flags.add(flag)

    def add_optimization_profile(self, profile: Any) -> int:
        self.profile = profile.shapes
        return 0

    def create_timing_cache(self, known: bytes) -> Any:
        return SimpleNamespace(serialize=lambda: known)

    def set_timing_cache(self, cache: Any, ignore: bool) -> None:
        self._cache = cache

    def get_timing_cache(self) -> Any:
        return self._cache

    def _taken(self, *_: Any) -> None: ...

    set_preview_feature = set_tactic_sources = set_memory_pool_limit = _taken
    clear_flag = _taken


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, name: str, *three: Any) -> None:
        self.shapes[name] = three


class Builder:
    def __init__(self, log: Any) -> None: ...

    def create_network(self, flags: int) -> Network:
        return Network()

    def create_builder_config(self) -> Config:
        return Config()

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> bytes:
        magic = b"vtrt" if BuilderFlag.VERSION_COMPATIBLE in config.flags else b"ptrt"
        return magic + pickle.dumps((network.model.SerializeToString(), config.profile))


class Runtime:
    engine_host_code_allowed = False

    def __init__(self, log: Any) -> None:
        self._log = log

    def deserialize_cuda_engine(self, plan: bytes) -> Any:
        if not plan.startswith((b"ptrt\x80", b"vtrt\x80")):
            self._log.log(Severity.ERROR, "the plan's magic tag does not match")
            return None
        if plan.startswith(b"vtrt") and not self.engine_host_code_allowed:
            self._log.log(Severity.ERROR, "the plan has host code, which is not allowed")
            return None
        return Engine(self._log, *pickle.loads(plan[4:]))


class Engine:
    device_memory_size = 1 << 20

    def __init__(self, log: Any, model: bytes, profile: dict[str, Any]) -> None:
        self.log, self.profile = log, profile
        self.session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        self.inputs = [node.name for node in inputs]
        self.outputs = [node.name for node in outputs]
        self.shapes = {
            node.name: tuple(size if isinstance(size, int) else -1 for size in node.shape)
            for node in (*inputs, *outputs)
        }
        kinds = {"tensor(float)": "FLOAT", "tensor(float16)": "HALF"}
        self.kinds = {node.name: kinds[node.type] for node in (*inputs, *outputs)}
        self.num_io_tensors = len(self.kinds)

    def get_tensor_name(self, at: int) -> str:
        return list(self.kinds)[at]

    def get_tensor_dtype(self, name: str) -> Any:
        return DataType[self.kinds[name]]

    def get_tensor_shape(self, name: str) -> Any:
        return self.shapes[name]

    def get_tensor_location(self, name: str) -> Any:
        return TensorLocation.DEVICE

    def get_tensor_format(self, name: str) -> Any:
        return TensorFormat.LINEAR

    def get_tensor_mode(self, name: str) -> Any:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_profile_shape(self, name: str, index: int) -> Any:
        return self.profile[name]

    def create_execution_context_without_device_memory(self) -> Any:
        return Context(self)


class Context:
    """`rows` of what tests say: those of a batch for which there is memory."""

    active_optimization_profile, device_memory = 0, 0

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._places: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._places[name] = address
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        rows = next(iter(self._shapes.values()))[0]
        return tuple(rows if size == -1 else size for size in self._engine.shapes[name])

    def execute_async_v3(self, stream: int) -> bool:
        assert self.device_memory, "it has memory to work in"
        rows = next(iter(self._shapes.values()))[0]
        if rows > cuda_on_cpu.says("rows", 1 << 30):
            self._engine.log.log(Severity.ERROR, "Error Code 2: OutOfMemory (of the stand-in)")
            return False
        cuda_on_cpu.do(stream, self._computed)
        return True

    def _computed(self) -> None:
        engine = self._engine
        given = {name: self._array(name).copy() for name in engine.inputs}
        for name, found in zip(engine.outputs, engine.session.run(None, given), strict=True):
            self._array(name)[...] = found

    def _array(self, name: str) -> Any:
        shape = self._shapes.get(name) or self.get_tensor_shape(name)
        kind = np.dtype(_NUMPY[self._engine.kinds[name]])
        size = int(np.prod(shape)) * kind.itemsize
        memory = (ctypes.c_char * size).from_address(self._places[name])
        return np.frombuffer(memory, kind).reshape(shape)
