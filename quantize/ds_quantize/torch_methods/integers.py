"""What ONNX Runtime makes of a quantized file: which operators it really runs in integers."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import onnx
import onnxruntime as ort

from ds_quantize.forms import Measured

FLOATS = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "ConvTranspose")
PREFIXES = ("QLinear", "QGemm", "MatMulInteger", "ConvInteger", "DynamicQuantize", "MatMulNBits")


def operators(path: Path) -> Measured:
    """`integer` and `floating`: types and numbers of the layers as ONNX Runtime will run them."""
    counts = Counter(node.op_type for node in _optimized(path).graph.node)
    return {
        "integer": {kind: n for kind, n in sorted(counts.items()) if kind.startswith(PREFIXES)},
        "floating": {kind: n for kind, n in sorted(counts.items()) if kind in FLOATS},
    }


def _optimized(path: Path) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as folder:
        settings = ort.SessionOptions()
        settings.log_severity_level = 4
        settings.optimized_model_filepath = str(Path(folder, "optimized.onnx"))
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        ort.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
        return onnx.load(settings.optimized_model_filepath, load_external_data=False)
