"""The networks of BERT's family as OpenVINO graphs, made straight from their weights.

Inputs `input_ids`, `attention_mask` and `token_type_ids`: INT64 [batch, tokens], padded on the
right. Output: the last hidden states, FP32 [batch, tokens, width], or a classifier's logits,
FP32 [batch, labels].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import openvino as ov
import openvino.opset13 as op

from ds_engines.encoder_folder import EncoderInfo
from ds_engines.encoder_weights import Weights
from ds_engines.errors import LoadError

Node = Any

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class Layer(NamedTuple):
    """The names of a layer's parts."""

    query: str
    key: str
    value: str
    attended: str
    attended_norm: str
    wide: str
    narrow: str
    norm: str


class Family(NamedTuple):
    """Where a family keeps its weights, what its configuration calls its sizes, and its heads.

    `shifted`: positions begin after the padding's and are counted over tokens alone.
    """

    prefix: str
    layers: str
    names: Layer
    heads: str
    depth: str
    activation: str
    shifted: bool = False
    types: bool = True


_BERT = Layer(
    "attention.self.query", "attention.self.key", "attention.self.value",
    "attention.output.dense", "attention.output.LayerNorm",
    "intermediate.dense", "output.dense", "output.LayerNorm",
)  # fmt: skip
_DISTIL = Layer(
    "attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin", "sa_layer_norm",
    "ffn.lin1", "ffn.lin2", "output_layer_norm",
)  # fmt: skip
_MPNET = _BERT._replace(
    query="attention.attn.q", key="attention.attn.k", value="attention.attn.v",
    attended="attention.attn.o", attended_norm="attention.LayerNorm",
)  # fmt: skip

_SIZES = ("num_attention_heads", "num_hidden_layers", "hidden_act")
_ROBERTA = Family("roberta.", "encoder.layer", _BERT, *_SIZES, shifted=True)
FAMILIES = {
    "bert": Family("bert.", "encoder.layer", _BERT, *_SIZES),
    "electra": Family("electra.", "encoder.layer", _BERT, *_SIZES),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "mpnet": Family("mpnet.", "encoder.layer", _MPNET, *_SIZES, shifted=True, types=False),
    "distilbert": Family(
        "distilbert.", "transformer.layer", _DISTIL, "n_heads", "n_layers", "activation",
        types=False,
    ),
}  # fmt: skip
"""By `model_type`."""

_FARTHEST = 128
"""Tokens this far apart, or farther, share MPNet's last bucket."""

_ACTIVATIONS: dict[str, Callable[[Node], Node]] = {
    "gelu": lambda node: op.gelu(node, "erf"),
    "gelu_new": lambda node: op.gelu(node, "tanh"),
    "gelu_pytorch_tanh": lambda node: op.gelu(node, "tanh"),
    "relu": op.relu,
    "silu": op.swish,
    "swish": op.swish,
    "tanh": op.tanh,
}


def build(info: EncoderInfo, weights: Weights) -> ov.Model:
    """The network of a folder. Raises LoadError where weights are missing or do not fit."""
    ids, mask, types = (op.parameter([-1, -1], np.int64, name) for name in INPUTS)
    builder = _Builder(info, weights)
    try:
        states = builder.states(ids, mask, types)
        if info.classifies:
            states = builder.logits(states)
        model = ov.Model([states], [ids, mask, types], info.architecture)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise LoadError(f"{info.folder}: its weights do not fit its config.json: {error}") from None
    for port, name in zip(model.inputs, INPUTS, strict=True):
        port.get_tensor().set_names({name})
    model.output(0).get_tensor().set_names({"logits" if info.classifies else "last_hidden_state"})
    return model


class _Builder:
    """Adds nodes; weights are found below `prefix`, or at the top where a folder has the encoder
    alone.
    """

    def __init__(self, info: EncoderInfo, weights: Weights) -> None:
        self._config = info.config
        self._kind = str(info.config.get("model_type"))
        self._family = FAMILIES[self._kind]
        self._weights = weights
        self._heads = int(info.config[self._family.heads])
        self._epsilon = float(info.config.get("layer_norm_eps", 1e-12))
        self._activate = _ACTIVATIONS[info.config.get(self._family.activation, "gelu")]
        inside = self._family.prefix + "embeddings.word_embeddings.weight" in weights
        self._prefix = self._family.prefix if inside else ""

    def states(self, ids: Node, mask: Node, types: Node) -> Node:
        states = self._embedded(ids, mask, types)
        absent = op.subtract(op.constant(np.float32(1)), op.convert(mask, "f32"))
        bias = op.multiply(absent, op.constant(np.float32(-1e9)))
        bias = op.unsqueeze(bias, op.constant(np.array([1, 2])))
        if self._kind == "mpnet":
            bias = op.add(bias, self._relative(ids))
        for number in range(int(self._config[self._family.depth])):
            states = self._layer(states, bias, f"{self._family.layers}.{number}.")
        return states

    def logits(self, states: Node) -> Node:
        """A classifier's head over the first token's state."""
        first = op.gather(states, op.constant(0), op.constant(1))
        if self._kind == "bert":
            pooled = op.tanh(self._linear(first, "pooler.dense"))
            return self._linear(pooled, "classifier", top=True)
        if self._kind == "distilbert":
            pooled = op.relu(self._linear(first, "pre_classifier", top=True))
            return self._linear(pooled, "classifier", top=True)
        pooled = self._linear(first, "classifier.dense", top=True)
        pooled = op.gelu(pooled, "erf") if self._kind == "electra" else op.tanh(pooled)
        return self._linear(pooled, "classifier.out_proj", top=True)

    def _embedded(self, ids: Node, mask: Node, types: Node) -> Node:
        states = op.add(
            self._rows("embeddings.word_embeddings", ids),
            self._rows("embeddings.position_embeddings", self._places(ids, mask)),
        )
        if self._family.types:
            states = op.add(states, self._rows("embeddings.token_type_embeddings", types))
        states = self._norm(states, "embeddings.LayerNorm")
        if self._prefix + "embeddings_project.weight" in self._weights:
            states = self._linear(states, "embeddings_project")
        return states

    def _places(self, ids: Node, mask: Node) -> Node:
        """Each token's position, INT64 [batch, tokens]."""
        counted = op.cum_sum(mask, op.constant(np.int64(1)))
        if self._family.shifted:
            padding = op.constant(np.int64(self._config.get("pad_token_id", 1)))
            return op.add(op.multiply(counted, mask), padding)
        # Where there is padding, whose place is no matter, the last token's is as good as any.
        return op.subtract(counted, op.constant(np.int64(1)))

    def _layer(self, states: Node, bias: Node, at: str) -> Node:
        names = self._family.names
        query, key, value = (
            self._split(self._linear(states, at + name))
            for name in (names.query, names.key, names.value)
        )
        attended = op.scaled_dot_product_attention(query, key, value, bias)
        attended = op.transpose(attended, op.constant(np.array([0, 2, 1, 3])))
        attended = op.reshape(attended, op.constant(np.array([0, 0, -1])), special_zero=True)
        attended = self._linear(attended, at + names.attended)
        states = self._norm(op.add(attended, states), at + names.attended_norm)
        wide = self._activate(self._linear(states, at + names.wide))
        narrow = self._linear(wide, at + names.narrow)
        return self._norm(op.add(narrow, states), at + names.norm)

    def _split(self, states: Node) -> Node:
        """[batch, tokens, width] to [batch, heads, tokens, width of a head]."""
        shape = op.constant(np.array([0, 0, self._heads, -1]))
        split = op.reshape(states, shape, special_zero=True)
        return op.transpose(split, op.constant(np.array([0, 2, 1, 3])))

    def _relative(self, ids: Node) -> Node:
        """MPNet's bias by how far two tokens are apart, FP32 [1, heads, tokens, tokens]."""
        table = self._weight("encoder.relative_attention_bias.weight")
        tokens = op.gather(op.shape_of(ids), op.constant([1]), op.constant(0))
        places = int(self._config["max_position_embeddings"])
        whole = table[_buckets(places, len(table))].transpose(2, 0, 1)[np.newaxis]
        begin = op.constant(np.array([0, 0]))
        end = op.concat([tokens, tokens], 0)
        step, axes = op.constant(np.array([1, 1])), op.constant(np.array([2, 3]))
        return op.slice(op.constant(np.ascontiguousarray(whole)), begin, end, step, axes)

    def _rows(self, name: str, ids: Node) -> Node:
        table = op.constant(self._weight(name + ".weight"))
        return op.gather(table, ids, op.constant(0))

    def _linear(self, states: Node, name: str, top: bool = False) -> Node:
        weight = op.constant(self._weight(name + ".weight", top))
        product = op.matmul(states, weight, transpose_a=False, transpose_b=True)
        return op.add(product, op.constant(self._weight(name + ".bias", top)))

    def _norm(self, states: Node, name: str) -> Node:
        axes = op.constant(np.array([-1]))
        normal = op.mvn(states, axes, True, self._epsilon, "inside_sqrt")
        scaled = op.multiply(normal, op.constant(self._weight(name + ".weight")))
        return op.add(scaled, op.constant(self._weight(name + ".bias")))

    def _weight(self, name: str, top: bool = False) -> Any:
        full = name if top else self._prefix + name
        # What was converted from TensorFlow has older names.
        older = full.replace("LayerNorm.weight", "LayerNorm.gamma")
        older = older.replace("LayerNorm.bias", "LayerNorm.beta")
        return self._weights[older if older in self._weights else full]


def _buckets(places: int, buckets: int) -> Any:
    """Which of the distances' buckets each pair of places is in, as T5 has them: near ones have a
    bucket each, far ones share them on a logarithmic scale, half for either direction.
    """
    distance = np.arange(places)[np.newaxis] - np.arange(places)[:, np.newaxis]
    half = buckets // 2
    exact = half // 2
    far = np.abs(distance)
    # In FP32, as PyTorch does: a distance at the edge of two buckets falls into the same one.
    scale = np.log(np.maximum(far, 1).astype(np.float32) / np.float32(exact))
    scale = scale / np.float32(np.log(_FARTHEST / exact)) * np.float32(half - exact)
    shared = np.minimum(exact + scale.astype(np.int64), half - 1)
    return np.where(distance > 0, half, 0) + np.where(far < exact, far, shared)
