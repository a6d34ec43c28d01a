"""Constant folding and fusion by ONNX Runtime, kept in a file."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime as ort

from ds_quantize.context import Context
from ds_quantize.forms import Model, OnnxModel
from ds_quantize.methods.onnx import Fold
from ds_quantize.onnx_methods import graph
from ds_quantize.onnx_methods.sessions import session

LEVELS = {
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
}


def fold(model: Model, method: Fold, context: Context) -> OnnxModel:
    """Handler of `fold`."""
    before = graph.load(model)
    after = folded(graph.path_of(model), context.folder, method.level)
    context.measured["nodes"] = {"before": len(before.graph.node), "after": len(after.graph.node)}
    return graph.save(after, context.folder)


def folded(path: Path, folder: Path, level: str = "basic") -> onnx.ModelProto:
    """The model after ONNX Runtime's optimizations; `folder` is written to meanwhile."""
    optimized, data = folder / "folded.onnx", folder / "folded.data"
    options = ort.SessionOptions()
    options.graph_optimization_level = LEVELS[level]
    options.optimized_model_filepath = str(optimized)
    options.add_session_config_entry(
        "session.optimized_model_external_initializers_file_name", data.name
    )
    try:
        session(path, 1, options)
        proto: onnx.ModelProto = onnx.load(optimized)
    finally:
        optimized.unlink(missing_ok=True)
        data.unlink(missing_ok=True)
    graph.name_nodes(proto)
    return proto
