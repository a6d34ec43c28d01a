"""Running ONNX files while they are worked on, and feeding them calibration data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from ds_engines.base import Array, Tensors
from ds_quantize.context import Context
from ds_quantize.errors import DataError, MethodError
from ds_quantize.onnx_methods.graph import first_line

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


class Runner:
    """A graph that also gives some of its inner tensors.

    `tensors`: names of those; the model's own outputs come besides. Raises MethodError where
    ONNX Runtime does not take the graph.
    """

    def __init__(
        self, proto: onnx.ModelProto, threads: int, folder: Path, tensors: tuple[str, ...] = ()
    ) -> None:
        path = folder / "probe.onnx"
        onnx.save_model(
            with_outputs(proto, tensors), path, save_as_external_data=True, location="probe.data"
        )
        try:
            self._session = session(path, threads)
        finally:
            path.unlink()
            (folder / "probe.data").unlink(missing_ok=True)
        self.outputs = tuple(node.name for node in self._session.get_outputs())

    def run(self, feed: Tensors) -> Tensors:
        """All outputs by name."""
        try:
            return dict(zip(self.outputs, self._session.run(None, feed), strict=True))
        except Exception as error:
            raise MethodError(f"the model does not run: {first_line(error)}") from error


def session(
    path: Path, threads: int, options: ort.SessionOptions | None = None
) -> ort.InferenceSession:
    """ONNX Runtime on the CPU. Raises MethodError."""
    options = options or ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    try:
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise MethodError(f"ONNX Runtime does not take the model: {first_line(error)}") from error


def with_outputs(proto: onnx.ModelProto, tensors: tuple[str, ...]) -> onnx.ModelProto:
    """A copy that also gives these tensors."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    have = {output.name for output in copy.graph.output}
    for name in tensors:
        if name not in have:
            copy.graph.output.append(helper.make_empty_tensor_value_info(name))
    return copy


def feeds(proto: onnx.ModelProto, context: Context, method: str, batch: int) -> Iterator[Tensors]:
    """Calibration data as the model takes them, `batch` rows at a time, or as many as the model
    is fixed to; rows that do not fill such a batch are left out. Raises DataError.
    """
    data = context.needed_calibration(method)
    fixed = _fixed_batch(proto)
    any_batch = False
    for batch_of in data.batches(fixed or batch):
        if fixed and any(array.shape[:1] != (fixed,) for array in batch_of.inputs.values()):
            continue
        any_batch = True
        yield {
            value.name: _checked(value, batch_of.inputs, data.source)
            for value in model_inputs(proto)
        }
    if not any_batch:
        wanted = f"; the model takes {fixed} at a time" if fixed else ""
        raise DataError(f"{data.source}: {data.rows} rows are too few to calibrate with{wanted}")


def limited(
    proto: onnx.ModelProto, context: Context, method: str, batch: int, samples: int
) -> Iterator[Tensors]:
    """`feeds`, until `samples` rows have come; all for 0."""
    seen = 0
    for feed in feeds(proto, context, method, batch):
        yield feed
        seen += batch
        if samples and seen >= samples:
            return


def model_inputs(proto: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs that a caller gives: older files list their weights as well."""
    constants = {tensor.name for tensor in proto.graph.initializer}
    return [value for value in proto.graph.input if value.name not in constants]


def _fixed_batch(proto: onnx.ModelProto) -> int:
    """The first axis of all inputs where it is a number, the same for all; 0 otherwise."""
    sizes = {_dims(value)[:1] for value in model_inputs(proto)}
    if len(sizes) != 1:
        return 0
    dims = sizes.pop()
    return dims[0] if dims and dims[0] > 0 else 0


def _dims(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(
        dim.dim_value if dim.HasField("dim_value") else -1
        for dim in value.type.tensor_type.shape.dim
    )


def _checked(value: onnx.ValueInfoProto, inputs: Tensors, source: str) -> Array:
    if value.name not in inputs:
        raise DataError(f"{source} has no input {value.name!r}; it has {', '.join(inputs)}")
    array, dims = inputs[value.name], _dims(value)
    fits = len(dims) == array.ndim and all(
        want in (-1, have) for want, have in zip(dims, array.shape, strict=True)
    )
    if value.type.tensor_type.HasField("shape") and not fits:
        shape = ", ".join("any" if size < 0 else str(size) for size in dims)
        raise DataError(
            f"{source}: input {value.name!r} has the shape {array.shape}, not ({shape})"
        )
    return _converted(value, array, source)


def _converted(value: onnx.ValueInfoProto, array: Array, source: str) -> Array:
    wanted = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    if not np.can_cast(array.dtype, wanted, "same_kind"):
        raise DataError(f"{source}: input {value.name!r} is {array.dtype}, not {wanted}")
    converted: Array = array.astype(wanted, copy=False)
    if converted.dtype.kind == "f" and not np.isfinite(converted).all():
        raise DataError(f"{source}: input {value.name!r} holds values that are not finite")
    return converted
