"""The models: what they compute, beside the same in plain numpy, and the files they come in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from loadtests.models import fraud, recommender, table
from loadtests.models.__main__ import main
from loadtests.models.reference import Reference, difference
from onnx import numpy_helper

ROOT = Path(__file__).resolve().parents[2]
SMALLEST = 9
"""MB: one block of the table."""


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


class Plain:
    """The layers in numpy; weights are taken out of the model in the order of its nodes."""

    def __init__(self, model):
        self.weights = {
            each.name: numpy_helper.to_array(each).astype(np.float64)
            for each in model.graph.initializer
            if each.data_type == onnx.TensorProto.FLOAT
        }
        self.nodes = list(model.graph.node)
        self.gemms = iter([n for n in self.nodes if n.op_type == "Gemm"])
        self.norms = iter([n for n in self.nodes if n.op_type == "LayerNormalization"])

    def linear(self, x):
        _, weight, bias = next(self.gemms).input
        return x @ self.weights[weight] + self.weights[bias]

    def norm(self, x):
        assert len(next(self.norms).input) == 3
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt(x.var(-1, keepdims=True) + 1e-5)

    def encoder(self, x, heads, absent=None):
        """One sequence, [steps, width]."""
        steps, width = x.shape
        last = next(i for i, n in enumerate(self.nodes) if n.op_type == "Softmax")
        products = [
            n.input[1]
            for n in self.nodes[:last]
            if n.op_type == "MatMul" and n.input[1] in self.weights
        ]
        q, k, v = (
            (x @ self.weights[name]).reshape(steps, heads, -1).transpose(1, 0, 2)
            for name in products
        )
        scores = q @ k.transpose(0, 2, 1)
        if absent is not None:
            scores = np.where(absent, -np.inf, scores)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        read = scores / scores.sum(-1, keepdims=True) @ v
        x = self.norm(x + self.linear(read.transpose(1, 0, 2).reshape(steps, width)))
        return self.norm(x + self.linear(np.maximum(self.linear(x), 0)))


def plain_fraud(model, window):
    plain = Plain(model)
    (node,) = [n for n in plain.nodes if n.op_type == "LSTM"]
    w, r, b = (plain.weights[name] for name in node.input[1:4])
    h = c = np.zeros(fraud.HIDDEN)
    states = []
    for step in window:
        gates = w[0] @ step + r[0] @ h + b[0, : len(b[0]) // 2] + b[0, len(b[0]) // 2 :]
        i, o, f, g = np.split(gates, 4)  # the order of gates in ONNX
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        states.append(h)
    mean = plain.encoder(np.array(states), fraud.HEADS).mean(0)
    return sigmoid(plain.linear(np.maximum(plain.linear(mean), 0)))


def test_the_fraud_model_is_an_lstm_and_an_encoder():
    model = fraud.build()
    windows = np.random.default_rng(0).standard_normal((3, 24, 16)).astype(np.float32)
    (given,) = Reference(model).run({fraud.INPUT: windows}).values()
    assert given.shape == (3, 1)
    expected = [plain_fraud(model, window) for window in windows]
    np.testing.assert_allclose(given, expected, atol=1e-5)
    assert np.ptp(given) > 0.01


def plain_recommender(model, history, candidates, profile):
    """One user. DIN is spelt out: a network over [q, k, q - k, q * k] of every pair."""
    plain = Plain(model)
    present = history != 0
    place = next(n for n in plain.nodes if n.op_type == "Add").input[1]
    keys = table.embedded(history) + plain.weights[place]
    keys = plain.encoder(keys, recommender.HEADS, absent=~present)[present]
    queries = table.embedded(candidates).astype(np.float64)
    (pair,) = [w for w in plain.weights.values() if w.shape == (16, 33, 33)]
    (last,) = [w for w in plain.weights.values() if w.shape == (1, 16)]
    of_product = np.array([np.diag(each)[:32] for each in pair])
    # Only the sums Wq + Wd and Wk - Wd are in the file: any Wd goes with them.
    of_difference = np.full((16, 32), 0.3)
    of_query, of_key = pair[:, :32, 32] - of_difference, pair[:, 32, :32] + of_difference
    first = np.concatenate([of_query, of_key, of_difference, of_product], axis=1)
    q, k = np.broadcast_arrays(queries[:, None], keys[None])
    hidden = np.concatenate([q, k, q - k, q * k], axis=2) @ first.T + pair[:, 32, 32]
    interest = (np.maximum(hidden, 0) @ last[0]) @ keys
    user = np.maximum(plain.linear(np.concatenate([keys.mean(0), profile])), 0)
    x0 = x = np.concatenate([queries, interest, np.tile(user, (100, 1))], axis=1)
    for _ in range(recommender.CROSSES):
        x = x0 * plain.linear(x) + x
    return sigmoid(plain.linear(np.maximum(plain.linear(x), 0)))[:, 0]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A recommender of the smallest table."""
    path = tmp_path_factory.mktemp("models") / "small.onnx"
    table.write(path, SMALLEST)
    return path


@pytest.fixture(scope="module")
def asked():
    """Three users; the first has a full history, the others begin with padding."""
    random = np.random.default_rng(0)
    history = random.integers(1, 2**31 - 1, (3, 50), dtype=np.int32)
    history[1, :30] = 0
    history[2, :49] = 0
    return {
        "history": history,
        "candidates": random.integers(1, 2**31 - 1, (3, 100), dtype=np.int32),
        "profile": random.standard_normal((3, 16), np.float32),
    }


def test_the_recommender_is_an_encoder_din_and_cross_layers(small, asked):
    model = onnx.load(small)
    (given,) = Reference(small).run(asked).values()
    assert given.shape == (3, 100)
    expected = [plain_recommender(model, *user) for user in zip(*asked.values(), strict=True)]
    np.testing.assert_allclose(given, expected, atol=1e-4)
    assert np.ptp(given, axis=1).min() > 0.05


def test_a_history_of_padding_alone_has_scores(small, asked):
    nobody = asked | {"history": np.zeros_like(asked["history"])}
    (given,) = Reference(small).run(nobody).values()
    assert np.isfinite(given).all()
    assert np.ptp(given, axis=1).min() > 0.01


def test_a_table_beside_the_file_gives_the_same(small, asked, tmp_path):
    path = tmp_path / "external.onnx"
    table.write(path, SMALLEST, external=True)
    assert path.stat().st_size < 1e6
    assert path.with_name("external.onnx.data").stat().st_size == table.BLOCK_BYTES
    assert difference(Reference(small).run(asked), Reference(path).run(asked)) is None


def test_ids_are_looked_up_all_over_the_table(asked, tmp_path):
    """Each block of this table is twice the one before: the answer says where it was read."""
    rows = 3 * table.BLOCK_ROWS
    values = np.concatenate([table.block() * factor for factor in (1, 2, 4)])
    path = tmp_path / "blocks.onnx"
    path.write_bytes(
        recommender.build(rows, numpy_helper.from_array(values, "table")).SerializeToString()
    )
    ids = np.concatenate([asked["history"], asked["candidates"]], axis=1)
    known = {name: asked[name] for name in ("history", "profile")}
    expected = Reference(recommender.build_body()).run(known | {"embedded": values[ids % rows]})
    assert difference(expected, Reference(path).run(asked)) is None


def test_files_are_the_same_each_time(tmp_path):
    for name in ("one", "two"):
        fraud.write(tmp_path / f"{name}.onnx")
        table.write(tmp_path / f"{name}-table.onnx", SMALLEST)
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()
    assert (tmp_path / "one-table.onnx").read_bytes() == (tmp_path / "two-table.onnx").read_bytes()


def test_a_table_is_as_large_as_it_is_asked_to_be():
    assert table.blocks_in(256) * table.BLOCK_BYTES == pytest.approx(256e6, rel=0.02)
    assert table.blocks_in(3200) * table.BLOCK_BYTES == pytest.approx(3.2e9, rel=0.002)


@pytest.mark.parametrize("megabytes", [0, -1, 1, 1e9, float("nan"), float("inf")])
def test_a_size_that_cannot_be_is_named_with_those_that_can(megabytes):
    with pytest.raises(table.TableError, match=r"from 8\.4 MB .* to 274,8"):
        table.blocks_in(megabytes)


def test_the_commands_write_the_files(tmp_path):
    commands = (["fraud", "-o", "f.onnx"], ["recommender", "-o", "r.onnx", "--table-gb", "0.009"])
    for words in commands:
        command = [sys.executable, "-m", "loadtests.models", *words[:2], str(tmp_path / words[2])]
        done = subprocess.run(
            [*command, *words[3:]], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert f"{words[2]}: " in done.stdout
        assert done.stderr == ""
        onnx.checker.check_model(tmp_path / words[2])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.onnx", "r.onnx"]


def test_writing_a_table_says_how_far_it_is(tmp_path):
    seen = []
    table.write(tmp_path / "r.onnx", 25, external=True, report=lambda *of: seen.append(of))
    size = 3 * table.BLOCK_BYTES
    assert seen == [(size // 3, size), (2 * size // 3, size), (size, size)]


def test_an_interrupted_table_leaves_nothing(tmp_path):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        table.write(tmp_path / "r.onnx", SMALLEST, external=True, report=interrupt)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["recommender", "-o", "{folder}/r.onnx", "--table-mb", "1"], "a table of 1 MB"),
        (["fraud", "-o", "{folder}/none/f.onnx"], "/none/f.onnx.part: No such file"),
        (["bench", "fraud", "--table-mb", "9"], "fraud has no table"),
        (["bench", "fraud", "--seconds", "0"], "--seconds 0"),
        (["bench", "fraud", "--threads", "0"], "--threads 0"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(words, problem, tmp_path, capsys):
    assert main([word.format(folder=tmp_path) for word in words]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert problem in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words", [["bench", "fraud"], ["bench", "recommender", "--table-mb", str(SMALLEST)]]
)
def test_the_cost_of_a_row_is_printed(words, capsys):
    assert main([*words, "--seconds", "0.05"]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["1", "4", "16", "64"]
    assert all(float(line.split("|")[2].replace(",", "")) > 0 for line in lines[2:])
