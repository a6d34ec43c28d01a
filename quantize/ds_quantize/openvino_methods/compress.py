"""Handlers over NNCF."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import nncf
import numpy as np
from nncf.common.logging.track_progress import track

from ds_quantize.context import Context
from ds_quantize.errors import DataError, MethodError
from ds_quantize.forms import FolderModel, Measured, Model
from ds_quantize.llm_methods.quiet import quiet
from ds_quantize.llm_methods.texts import texts, tokenizer_of
from ds_quantize.methods.openvino import (
    OnOpenVino,
    OpenVinoInt4Weights,
    OpenVinoInt8Weights,
    OpenVinoKvCache,
)
from ds_quantize.openvino_methods import folder

SMALL = 1024
"""Elements of a constant below which it is none of the weights."""

POINT = "zero_point"
"""How the library ends the names of constants that are zero points."""

nncf.set_log_level(logging.ERROR)


def kv_cache(model: Model, method: OpenVinoKvCache, context: Context) -> FolderModel:
    """Handler of `openvino-kv-cache`."""
    source = _folder(model)
    context.measured["cache"] = method.cache
    return folder.written(folder.graph(source.path), source.path, _target(context), method.cache)


def int8_weights(model: Model, method: OpenVinoInt8Weights, context: Context) -> FolderModel:
    """Handler of `openvino-int8-weights`."""
    modes = nncf.CompressWeightsMode
    mode = modes.INT8_SYM if method.symmetric else modes.INT8_ASYM
    return _made(model, method, context, {"mode": mode})


def int4_weights(model: Model, method: OpenVinoInt4Weights, context: Context) -> FolderModel:
    """Handler of `openvino-int4-weights`."""
    modes = nncf.CompressWeightsMode
    settings = {
        "mode": modes.INT4_SYM if method.symmetric else modes.INT4_ASYM,
        "group_size": method.group_size,
        "ratio": method.ratio,
    }
    if method.needs_calibration:
        rows = _rows(method, context, tokenizer_of(_folder(model).path))
        settings |= {
            "awq": method.awq,
            "scale_estimation": method.scale_estimation,
            "dataset": nncf.Dataset(rows),
            "subset_size": len(rows),
        }
        context.measured.update(texts=len(rows), tokens=sum(row["input_ids"].size for row in rows))
    return _made(model, method, context, settings)


def _made(
    model: Model,
    method: OpenVinoInt8Weights | OpenVinoInt4Weights,
    context: Context,
    settings: dict[str, Any],
) -> FolderModel:
    source = _folder(model)
    graph = folder.graph(source.path)
    if graph.has_rt_info(["nncf", "weight_compression"]):
        raise MethodError(
            f"the weights of {source.path} are compressed already: give the model as it was before"
        )
    with quiet(), _shown(context):
        try:
            graph = nncf.compress_weights(graph, ignored_scope=_scope(method.ignore), **settings)
        except (nncf.ValidationError, nncf.InvalidGroupSizeError, RuntimeError) as error:
            raise MethodError(
                f"{method.name} cannot be applied to {source.path}: {_reason(error)}"
            ) from error
    context.measured.update(_measured(graph, method))
    return folder.written(graph, source.path, _target(context), method.cache)


def _folder(model: Model) -> FolderModel:
    if not isinstance(model, FolderModel) or model.form != "openvino":
        raise MethodError(f"a model of form {model.form!r} is no OpenVINO folder")
    return model


def _target(context: Context) -> Any:
    return context.folder / "model"


def _scope(ignore: Iterable[str]) -> Any:
    patterns = [name[3:] for name in ignore if name.startswith("re:")]
    return nncf.IgnoredScope(
        names=[name for name in ignore if not name.startswith("re:")], patterns=patterns
    )


def _rows(
    method: OpenVinoInt4Weights, context: Context, tokenizer: Any
) -> list[dict[str, np.ndarray[Any, Any]]]:
    """What the graph is given, one text each."""
    data = context.needed_calibration(method.name)
    total = min(method.samples or data.rows, data.rows)
    taken = (text for _, text in zip(range(total), texts(data, tokenizer), strict=False))
    rows = []
    for text in context.progress.track(taken, "Reading texts", total):
        ids = tokenizer(text, truncation=True, max_length=method.tokens)["input_ids"]
        if len(ids) > 1:
            rows.append(_row(np.array([ids], np.int64)))
    if not rows:
        raise DataError(f"{data.source} holds no text of two tokens or more")
    return rows


def _row(ids: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    return {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "position_ids": np.arange(ids.shape[1], dtype=np.int64)[None],
        "beam_idx": np.zeros(1, np.int32),
    }


@contextlib.contextmanager
def _shown(context: Context) -> Iterator[None]:
    """The library's bars as ours."""

    def iterate(bar: Any) -> Iterator[Any]:
        total = len(bar.sequence) if hasattr(bar.sequence, "__len__") else bar.total
        yield from context.progress.track(bar.sequence, bar.description, total and int(total))

    before = track.__iter__
    track.__iter__ = iterate
    try:
        yield
    finally:
        track.__iter__ = before


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, nncf.InvalidGroupSizeError) and len(lines) > 1:
        return f"{lines[0]} {lines[-1]} is one of the layers; set another group_size, or ignore it"
    return lines[0] if lines else type(error).__name__


def _measured(graph: Any, method: OnOpenVino) -> Measured:
    """How many weights there are of each type."""
    weights: Counter[str] = Counter()
    for node in graph.get_ops():
        if node.get_type_name() == "Constant" and not node.get_friendly_name().endswith(POINT):
            output = node.output(0)
            count = int(np.prod(tuple(output.get_shape()) or (1,)))
            if count >= SMALL:
                weights[output.get_element_type().get_type_name()] += count
    return {"weights": dict(weights.most_common()), "cache": method.cache}
