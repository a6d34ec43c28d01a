"""From an encoder's states to one vector a row, as nodes after the network's own.

Inside the graph, because a row's states are as many numbers as it has tokens times more.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
import openvino.opset13 as op

from ds_engines.encoder_folder import WEIGHTS, Dense, EncoderInfo
from ds_engines.encoder_weights import Weights
from ds_engines.errors import LoadError

Node = Any

_STATES = ("last_hidden_state", "token_embeddings")


def pooled(info: EncoderInfo, model: ov.Model) -> ov.Model:
    """The model with the one output FP32 [batch, width] that its folder asks for."""
    found = _output(info, model)
    if len(found.partial_shape) == 2:
        return ov.Model([op.convert(found, "f32")], model.get_parameters(), model.get_name())
    mask = next((port for port in model.inputs if "attention_mask" in port.get_names()), None)
    if mask is None:
        raise LoadError(f"the network in {info.folder} has no input attention_mask")
    present = op.convert(mask.get_node(), "f32")
    states = op.convert(found, "f32")
    vectors = [_pool(states, present, mode) for mode in info.pooling]
    vector = vectors[0] if len(vectors) == 1 else op.concat(vectors, -1)
    for layer in info.dense:
        vector = _dense(vector, layer)
    return ov.Model([vector], model.get_parameters(), model.get_name())


def _output(info: EncoderInfo, model: ov.Model) -> Any:
    """The network's logits, or its vectors, or what they are made of."""
    wanted = ["logits"] if info.classifies else list(_STATES)
    if not info.classifies and not info.dense:
        wanted.insert(0, "sentence_embedding")
    for name in wanted:
        for port in model.outputs:
            if name in port.get_names():
                return port.get_node().input_value(0)
    dimensions = 2 if info.classifies else 3
    for port in model.outputs:
        if len(port.partial_shape) == dimensions:
            return port.get_node().input_value(0)
    raise LoadError(f"the network in {info.folder} has none of the outputs {', '.join(wanted)}")


def _pool(states: Node, present: Node, mode: str) -> Node:
    """`states` FP32 [batch, tokens, width], `present` FP32 [batch, tokens], 0 for padding."""
    if mode == "cls":
        return op.gather(states, op.constant(0), op.constant(1))
    count = op.reduce_sum(present, op.constant(np.array([1])), keep_dims=True)
    if mode == "lasttoken":
        last = op.subtract(op.convert(count, "i64"), op.constant(np.int64(1)))
        found = op.gather(states, last, op.constant(1), batch_dims=1)
        return op.squeeze(found, op.constant(np.array([1])))
    weights = op.unsqueeze(present, op.constant(-1))
    tokens = op.constant(np.array([1]))
    if mode == "max":
        absent = op.subtract(weights, op.constant(np.float32(1)))
        bias = op.multiply(absent, op.constant(np.float32(1e9)))
        return op.reduce_max(op.add(states, bias), tokens)
    if mode == "weightedmean":
        places = op.cum_sum(weights, op.constant(1))
        weights = op.multiply(weights, places)
        count = op.reduce_sum(
            op.multiply(present, op.squeeze(places, op.constant(-1))), tokens, True
        )
    total = op.reduce_sum(op.multiply(states, weights), tokens)
    return op.divide(total, op.sqrt(count) if mode == "mean_sqrt_len_tokens" else count)


def _dense(vector: Node, layer: Dense) -> Node:
    weights = Weights(layer.folder / WEIGHTS)
    product = op.matmul(vector, op.constant(weights["linear.weight"]), False, True)
    if "linear.bias" in weights:
        product = op.add(product, op.constant(weights["linear.bias"]))
    return op.tanh(product) if layer.tanh else product
