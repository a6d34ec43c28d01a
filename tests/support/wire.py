"""A request's way from a front-end's codec to the engine's arrays, without the processes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ds_engines import datatypes
from ds_engines.base import Tensors
from ds_engines.spec import BatchPolicy, ModelSpec, TensorSpec
from ds_serve.gateway.requests import InferRequest, check
from ds_serve.transport.codec import frames_of, read_to_worker
from ds_serve.transport.messages import Infer, Tensor
from ds_serve.worker.work import arrays_of, lane_of

Array = np.ndarray[Any, Any]

NAMES = tuple(datatypes.DATATYPES)


def anything(datatype: str, axes: int) -> TensorSpec:
    """An optional tensor, named after its datatype and rank, whose axes are all dynamic."""
    return TensorSpec(f"{datatype}-{axes}", datatype, (-1,) * axes, 0 if axes else None, True)


SPEC = ModelSpec(
    "any",
    "onnxruntime",
    Path("any.onnx"),
    inputs=tuple(anything(datatype, axes) for datatype in NAMES for axes in range(4)),
    outputs=(TensorSpec("y", "FP32", (-1,), 0),),
    batch=BatchPolicy(max_batch_size=1000),
)
"""A model that takes every tensor of up to three axes, so that nothing is refused too early."""


def carried(request: InferRequest) -> Tensors:
    """What the engine gets of a decoded request. Raises what the gateway and the worker raise."""
    rows = check(SPEC, request)
    sent = Infer(1, rows, 0.0, 1.0, request.inputs, request.outputs)
    frames = [memoryview(bytes(frame)) for frame in frames_of([sent])]
    (received,) = read_to_worker(frames)
    assert isinstance(received, Infer)
    lane_of(SPEC, received)
    return arrays_of(received)


@st.composite
def arrays(
    draw: st.DrawFn, names: tuple[str, ...] = NAMES, rows: int = 0
) -> tuple[TensorSpec, Array]:
    """One of SPEC's inputs and an array for it; BYTES hold text, BF16 any bit pattern.

    `rows` 0: any number, but at least one.
    """
    datatype = draw(st.sampled_from(names))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    if shape:
        shape = (rows or draw(st.integers(1, 4)), *shape[1:])
    return anything(datatype, len(shape)), draw(values(datatype, shape))


@st.composite
def inputs(draw: st.DrawFn) -> list[tuple[TensorSpec, Array]]:
    """What one request may hold: different inputs of one number of rows."""
    alike = arrays(rows=draw(st.integers(1, 4)))
    return draw(st.lists(alike, max_size=4, unique_by=lambda pair: pair[0].name))


def values(datatype: str, shape: tuple[int, ...]) -> st.SearchStrategy[Array]:
    if datatype != "BYTES":
        return hnp.arrays(datatypes.DATATYPES[datatype].dtype, shape)
    count = math.prod(shape)
    texts = st.lists(st.text(max_size=5), min_size=count, max_size=count)
    return texts.map(lambda found: _objects([text.encode() for text in found]).reshape(shape))


def _objects(elements: list[bytes]) -> Array:
    made = np.empty(len(elements), dtype=object)
    made[:] = elements
    return made


def tensor(spec: TensorSpec, array: Array) -> Tensor:
    data = memoryview(datatypes.to_bytes(spec.datatype, array))
    return Tensor(spec.name, spec.datatype, array.shape, data)


def same(one: Array, other: Array) -> bool:
    """Alike to the last bit, NaNs and all."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return (
        one.tolist() == other.tolist() if one.dtype == object else one.tobytes() == other.tobytes()
    )


@st.composite
def mutated(draw: st.DrawFn, data: bytes) -> bytes:
    """`data` with a few bytes changed, left out or put in."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(changed)))
        stop = start + draw(st.integers(0, 3))
        changed[start:stop] = draw(st.binary(max_size=3))
    return bytes(changed)
