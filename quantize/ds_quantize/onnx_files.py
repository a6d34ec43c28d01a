"""Of which files an ONNX model consists."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from ds_quantize.errors import SourceError


def load_graph(path: Path) -> onnx.ModelProto:
    """The model without the tensors that other files hold. Raises SourceError."""
    try:
        return onnx.load(path, load_external_data=False)
    except Exception as error:
        raise SourceError(f"{path} is not an ONNX file") from error


def files(path: Path) -> list[Path]:
    """The file itself first, then those with tensors, each beside or below it."""
    locations: dict[str, None] = {}
    for tensor in _tensors(load_graph(path).graph):
        if uses_external_data(tensor):
            locations.setdefault(str(ExternalDataInfo(tensor).location))
    found = [path]
    for location in locations:
        file = path.parent / location
        if ".." in Path(location).parts or Path(location).is_absolute():
            raise SourceError(f"{path} keeps tensors in {location!r}, which is not beside it")
        if not file.is_file():
            raise SourceError(f"{path} keeps tensors in {location!r}, and there is no file {file}")
        found.append(file)
    return found


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Of the graph, of its nodes' attributes, and of the graphs within them."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)
