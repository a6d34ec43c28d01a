"""Running ONNX files while they are worked on, on calibration data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
import onnxruntime as ort
from onnx import helper

from ds_engines.base import Tensors
from ds_engines.onnxruntime import opened
from ds_quantize.context import Context
from ds_quantize.errors import MethodError
from ds_quantize.onnx_methods.graph import first_line


class Runner:
    """A graph that also gives some of its inner tensors, by name.

    Raises MethodError where ONNX Runtime does not take the graph.
    """

    def __init__(self, proto: onnx.ModelProto, threads: int, tensors: tuple[str, ...] = ()) -> None:
        self._session = session(with_outputs(proto, tensors).SerializeToString(), threads)
        self.outputs = tuple(node.name for node in self._session.get_outputs())

    def run(self, feed: Tensors) -> Tensors:
        """All outputs by name."""
        try:
            return dict(zip(self.outputs, self._session.run(None, feed), strict=True))
        except Exception as error:
            raise MethodError(f"the model does not run: {first_line(error)}") from error


def session(
    model: Path | bytes, threads: int, options: ort.SessionOptions | None = None
) -> ort.InferenceSession:
    """ONNX Runtime on the CPU. Raises MethodError."""
    options = options or ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    try:
        return opened(model, options)
    except Exception as error:
        raise MethodError(f"ONNX Runtime does not take the model: {first_line(error)}") from error


def with_outputs(proto: onnx.ModelProto, tensors: tuple[str, ...]) -> onnx.ModelProto:
    """A copy that also gives these tensors."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    have = {value.name for value in (*copy.graph.output, *copy.graph.input)}
    for name in tensors:
        if name not in have:
            copy.graph.output.append(helper.make_empty_tensor_value_info(name))
    return copy


def feeds(context: Context, method: str, samples: int, batch: int) -> Iterator[Tensors]:
    """The first `samples` rows of the calibration data, `batch` at a time; all of them for 0.

    Raises DataError where there are no data.
    """
    data = context.needed_calibration(method)
    seen = 0
    for rows in data.batches(batch):
        yield rows.inputs
        seen += batch
        if samples and seen >= samples:
            return


def shown_feeds(
    context: Context, method: str, samples: int, batch: int, description: str
) -> Iterator[Tensors]:
    """`feeds` under a progress bar."""
    rows = context.needed_calibration(method).rows
    total = -(-min(rows, samples or rows) // batch)
    return context.progress.track(feeds(context, method, samples, batch), description, total)
