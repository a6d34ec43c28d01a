"""A repository with ensembles of small ONNX models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_models
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT
ROW = ["batch", 4]


def constant(name: str, value: float):
    return numpy_helper.from_array(np.array(value, np.float32), name)


def model(path: Path, nodes, inputs, outputs, constants=()) -> None:
    """All tensors are FP32[batch, 4]."""
    onnx_models.save(
        path,
        [helper.make_node(kind, given, made) for kind, given, made in nodes],
        [helper.make_tensor_value_info(name, FLOAT, ROW) for name in inputs],
        [helper.make_tensor_value_info(name, FLOAT, ROW) for name in outputs],
        [constant(name, value) for name, value in constants],
    )


def tensors(what: str, *names: str, kind: str = "FP32", dims: str = "4") -> str:
    return "".join(
        f'{what} {{ name: "{name}" data_type: TYPE_{kind} dims: [{dims}] }}\n' for name in names
    )


def step(name: str, inputs: dict[str, str], outputs: dict[str, str], version: int = -1) -> str:
    def pairs(field: str, values: dict[str, str]) -> str:
        return "".join(f'{field} {{ key: "{k}" value: "{v}" }} ' for k, v in values.items())

    maps = pairs("input_map", inputs) + pairs("output_map", outputs)
    return f'step {{ model_name: "{name}" model_version: {version} {maps}}}\n'


def ensemble(folder: Path, tensors_: str, *steps: str, batch: int = 8) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.pbtxt"
    path.write_text(
        f'platform: "ensemble"\nmax_batch_size: {batch}\n{tensors_}'
        f"ensemble_scheduling {{\n{''.join(steps)}}}\n"
    )
    return path


DIAMOND = (
    tensors("input", "x") + tensors("output", "sum", "tripled"),
    step("fork", {"x": "x"}, {"low": "low", "high": "high"}),
    step("left", {"a": "low"}, {"b": "tripled"}),
    step("right", {"a": "high"}, {"b": "less"}),
    step("join", {"l": "tripled", "r": "less"}, {"sum": "sum"}),
)
"""x to sum = 3 (x + 1) + (2 x - 5), and tripled = 3 (x + 1), which needs two steps of the four."""


def members(repository: Path) -> None:
    file = "1/model.onnx"
    model(
        repository / "fork" / file,
        [("Add", ["x", "one"], ["low"]), ("Mul", ["x", "two"], ["high"])],
        ["x"], ["low", "high"], [("one", 1), ("two", 2)],
    )  # fmt: skip
    model(
        repository / "left" / file, [("Mul", ["a", "three"], ["b"])], ["a"], ["b"], [("three", 3)]
    )
    model(repository / "right" / file, [("Sub", ["a", "five"], ["b"])], ["a"], ["b"], [("five", 5)])
    model(repository / "join" / file, [("Add", ["l", "r"], ["sum"])], ["l", "r"], ["sum"])


def repository(folder: Path) -> Path:
    """`diamond`; `outer`, which holds it; `long`, which takes as long as its request says; `picky`,
    whose second step fails for an index above 15; `fourfold`, of one model twice;
    `loose`, whose second step takes four columns and no others.
    """
    members(folder)
    ensemble(folder / "diamond", *DIAMOND)
    (folder / "diamond/1").mkdir()
    ensemble(
        folder / "outer",
        tensors("input", "x") + tensors("output", "y"),
        step("diamond", {"x": "x"}, {"sum": "s"}),
        step("left", {"a": "s"}, {"b": "y"}),
    )
    onnx_models.slow(folder / "slow/1/model.onnx")
    ensemble(
        folder / "long",
        tensors("input", "x", dims="-1, 4")
        + tensors("input", "steps", kind="INT64", dims="1")
        + tensors("output", "y", dims="-1, 4"),
        step("slow", {"x": "x", "steps": "steps"}, {"y": "m"}),
        step("left", {"a": "m"}, {"b": "y"}),
        batch=0,
    )
    onnx_models.sequences(folder / "double/1/model.onnx")
    ensemble(
        folder / "fourfold",
        tensors("input", "x", dims="-1, -1") + tensors("output", "y", dims="-1, -1"),
        step("double", {"x": "x"}, {"double": "twice"}),
        step("double", {"x": "twice"}, {"double": "y"}),
    )
    onnx_models.identities(folder / "any/1/model.onnx", ["FP32"])
    ensemble(
        folder / "loose",
        tensors("input", "x", dims="-1") + tensors("output", "y"),
        step("any", {"in_FP32": "x"}, {"out_FP32": "z"}),
        step("left", {"a": "z"}, {"b": "y"}),
    )
    onnx_models.lookup(folder / "lookup/1/model.onnx")
    onnx_models.identities(folder / "same/1/model.onnx", ["INT64"])
    ensemble(
        folder / "picky",
        tensors("input", "i", kind="INT64", dims="1") + tensors("output", "value", dims="1"),
        step("same", {"in_INT64": "i"}, {"out_INT64": "index"}),
        step("lookup", {"index": "index"}, {"value": "value"}),
    )
    return folder
