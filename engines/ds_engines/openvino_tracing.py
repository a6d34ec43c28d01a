"""From PyTorch to OpenVINO: the heavy half of `openvino_export`, which imports it when needed."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import torch
from openvino import opset13 as ops
from openvino._offline_transformations import (
    apply_make_stateful_transformation,
)
from openvino.frontend.pytorch import patch_model
from openvino_tokenizers import convert_tokenizer as tokenizer_graphs
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.utils import logging as transformers_logging

from ds_engines import no_telemetry
from ds_engines.errors import LoadError

Shapes = list[tuple[int, int]]
"""Of each tensor of the cache, keys and values of the first layer first: its heads, its width."""

INPUTS = ("input_ids", "attention_mask", "position_ids")
ROWS, PAST, NEW = 2, 3, 2
"""Of the example that is traced; none may be 1, which would be taken for a fixed size."""

PROMPT = 8
"""Tokens that both graphs are asked about, half of them out of the cache."""

COSINE = 0.99
"""Of both graphs' scores, at the worst token. BF16 in PyTorch and FP32 here give 0.9999."""

_NOISY = ("torchao", "torch.utils._pytree")
"""Loggers that warn of what other hardware would need, or library authors."""

no_telemetry.decline()


def convert(folder: Path, path: Path, progress: Callable[[str, float], None]) -> None:
    """Write the graph of the language model in `folder`. Raises LoadError."""
    with _quiet():
        model = _loaded(folder)
        shapes = _cache_shapes(model, folder)
        ids = _prompt(model)
        with torch.inference_mode():
            expected = model(input_ids=ids, use_cache=False).logits[0].float().numpy()
        progress("tracing", 0.1)
        graph = _traced(model, shapes, folder)
        del model
        _name(graph, shapes)
        _keep_cache_inside(graph, shapes)
        progress("checking", 0.6)
        _check(graph, ids.numpy(), expected, folder)
        progress("writing", 0.8)
        ov.save_model(graph, path, compress_to_fp16=True)


def convert_tokenizer(folder: Path, path: Path, back: Path) -> None:
    """Write the graphs that make tokens of text, and text of tokens. Raises LoadError."""
    try:
        with _quiet():
            read = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            encoder, decoder = tokenizer_graphs(read, with_detokenizer=True)
            ov.save_model(encoder, path)
            ov.save_model(decoder, back)
    except Exception as error:  # of both libraries, as many kinds as there are tokenizers
        raise LoadError(
            f"the tokenizer of {folder} cannot be converted: {_first_line(error)}"
        ) from error


def _loaded(folder: Path) -> Any:
    """With the attention that OpenVINO has an operator for."""
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto", attn_implementation="sdpa", local_files_only=True
        )
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise LoadError(
            f"{folder} cannot be loaded as a language model: {_first_line(error)}"
        ) from error
    return model.eval()


def _cache_shapes(model: Any, folder: Path) -> Shapes:
    """What the model remembers of a text, which must be keys and values of all its tokens."""
    ids = torch.zeros(1, PAST, dtype=torch.long)
    with torch.inference_mode():
        cache = model(input_ids=ids, use_cache=True).get("past_key_values")
    layers = getattr(cache, "layers", [])
    strange = [type(layer).__name__ for layer in layers if type(layer) is not DynamicLayer]
    if strange or not layers:
        kind = strange[0] if strange else type(cache).__name__
        raise LoadError(
            f"{folder}: a {model.config.model_type} model remembers a text in a {kind}; only keys "
            "and values of all tokens can be converted, no sliding windows or other states"
        )
    tensors = [tensor for layer in layers for tensor in (layer.keys, layer.values)]
    return [(tensor.shape[1], tensor.shape[3]) for tensor in tensors]


class _Flat(torch.nn.Module):  # type: ignore[misc]
    """The model with its cache as plain tensors [rows, heads, tokens, width], in and out."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        *past: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        cache = DynamicCache()
        cache.layers = [_layer(*pair) for pair in zip(past[::2], past[1::2], strict=True)]
        found = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        return found.logits, *(part for at in cache.layers for part in (at.keys, at.values))


def _layer(keys: torch.Tensor, values: torch.Tensor) -> DynamicLayer:
    layer = DynamicLayer()
    layer.lazy_initialization(keys, values)
    layer.keys, layer.values = keys, values
    return layer


def _traced(model: Any, shapes: Shapes, folder: Path) -> Any:
    """The graph, in FP32 but for the weights, which keep the bits that they were saved in."""
    if model.dtype in (torch.float16, torch.bfloat16):
        # OpenVINO's own; it is what optimum-intel calls, too.
        getattr(patch_model, "__make_16bit_traceable")(model)
    example = (
        torch.ones(ROWS, NEW, dtype=torch.long),
        torch.ones(ROWS, PAST + NEW, dtype=torch.long),
        torch.arange(PAST, PAST + NEW).repeat(ROWS, 1),
        *(torch.zeros(ROWS, heads, PAST, width) for heads, width in shapes),
    )
    try:
        with torch.no_grad():
            return ov.convert_model(_Flat(model), example_input=example)
    except Exception as error:  # whatever the model's code and the tracer do not agree on
        raise LoadError(f"{folder} cannot be traced: {_first_line(error)}") from error


def _name(graph: Any, shapes: Shapes) -> None:
    """Names and open sizes as OpenVINO GenAI expects them."""
    past, present = _names(shapes, "past_key_values"), _names(shapes, "present")
    free = ov.PartialShape([-1, -1])
    kept = [ov.PartialShape([-1, heads, -1, width]) for heads, width in shapes]
    open_shapes = [free] * len(INPUTS) + kept
    for port, name, shape in zip(graph.inputs, (*INPUTS, *past), open_shapes, strict=True):
        port.get_tensor().set_names({name})
        port.get_node().set_friendly_name(name)
        port.get_node().set_partial_shape(shape)
    for port, name in zip(graph.outputs, ("logits", *present), strict=True):
        port.get_tensor().set_names({name})
    graph.validate_nodes_and_infer_types()


def _names(shapes: Shapes, what: str) -> list[str]:
    return [f"{what}.{at // 2}.{('key', 'value')[at % 2]}" for at in range(len(shapes))]


def _keep_cache_inside(graph: Any, shapes: Shapes) -> None:
    """Make the cache the graph's state, whose rows the input `beam_idx` puts in order."""
    beams = ops.parameter(ov.PartialShape([-1]), dtype=np.int32, name="beam_idx")
    beams.output(0).get_tensor().add_names({"beam_idx"})
    for port in graph.inputs[len(INPUTS) :]:
        users = port.get_node().output(0).get_target_inputs()
        rows = ops.gather(port.get_node(), beams, ops.constant(0, dtype=np.int64))
        for user in users:
            user.replace_source_output(rows.output(0))
    graph.add_parameters([beams])
    graph.validate_nodes_and_infer_types()
    names = zip(_names(shapes, "past_key_values"), _names(shapes, "present"), strict=True)
    apply_make_stateful_transformation(graph, dict(names))
    _begin_empty(graph)
    graph.validate_nodes_and_infer_types()


def _begin_empty(graph: Any) -> None:
    """Before the first token the state has as many rows as there are prompts, and no tokens."""
    ids = graph.input("input_ids")
    rows = ops.gather(
        ops.shape_of(ids, output_type="i64"), ops.constant([0]), ops.constant(0, dtype=np.int64)
    )
    for node in graph.get_ops():
        if node.get_type_name() != "ReadValue":
            continue
        shape = node.get_output_partial_shape(0)
        rest = np.array([shape[1].get_length(), 0, shape[3].get_length()], np.int64)
        wanted = ops.concat([rows, ops.constant(rest)], axis=0)
        zero = ops.constant(0.0, dtype=node.get_output_element_type(0).to_dtype())
        node.set_arguments([ops.broadcast(zero, wanted)])


def _prompt(model: Any) -> torch.Tensor:
    """Some tokens, any; int64 [1, PROMPT]."""
    pick = np.random.default_rng(0).integers(model.config.get_text_config().vocab_size, size=PROMPT)
    return torch.from_numpy(pick[None].astype(np.int64))


def _check(graph: Any, ids: Any, expected: Any, folder: Path) -> None:
    """Both graphs must score the same prompt alike, here in two parts."""
    exact = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
    request = ov.Core().compile_model(graph, "CPU", exact).create_infer_request()
    half = PROMPT // 2
    parts = [_scores(request, ids[:, :half], 0), _scores(request, ids[:, half:], half)]
    found = np.concatenate(parts)
    lengths = np.linalg.norm(found, axis=-1) * np.linalg.norm(expected, axis=-1)
    worst = float(((found * expected).sum(-1) / np.maximum(lengths, 1e-30)).min())
    if not worst >= COSINE:  # NaN is not
        raise LoadError(
            f"{folder}: the converted graph's answers are not the model's: the cosine of their "
            f"scores is {worst:.3f}, and must be {COSINE}; this kind of model cannot be converted"
        )


def _scores(request: Any, ids: Any, past: int) -> Any:
    """float32 [tokens, vocabulary]."""
    total = past + ids.shape[1]
    request.infer({
        "input_ids": ids,
        "attention_mask": np.ones((1, total), np.int64),
        "position_ids": np.arange(past, total, dtype=np.int64)[None],
        "beam_idx": np.zeros(1, np.int32),
    })  # fmt: skip
    return request.get_tensor("logits").data[0].astype(np.float32)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the libraries' warnings, which are of no use to the user, and without their bars."""
    before = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(before)
        if bars:
            transformers_logging.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
