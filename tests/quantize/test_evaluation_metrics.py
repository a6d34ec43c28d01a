"""Metrics, and the intervals around them."""

from __future__ import annotations

import math

import comparisons
import numpy as np
import pytest

from ds_quantize import data, evaluate
from ds_quantize.errors import DataError, QuantizeError, RecipeError
from ds_quantize.evaluate import intervals
from ds_quantize.evaluate.intervals import Scores
from ds_quantize.evaluate.text import edits


def compared(tmp_path, metric, *, noise=0.5, source="", wrong=20):
    """A classifier against a noisier one."""
    original = comparisons.classifier(tmp_path / "m.onnx")
    candidate = comparisons.classifier(tmp_path / "c.onnx", comparisons.weights(noise))
    loaded = data.load(source or comparisons.saved(tmp_path / "d.npz", wrong=wrong))
    context = comparisons.context(tmp_path)
    return evaluate.compare(original, candidate, loaded, metric, context, comparisons.QUICK)


def by_hand(noise=0.5):
    features, labels = comparisons.rows(200, 20)
    return features @ comparisons.weights(), features @ comparisons.weights(noise), labels


def test_top_1_of_both_models(tmp_path):
    quality = compared(tmp_path, "top-1").quality
    before, after, labels = by_hand()
    assert quality.baseline.value == (before.argmax(1) == labels).mean() == 0.9
    assert quality.candidate.value == (after.argmax(1) == labels).mean()
    assert quality.drop == pytest.approx(0.9 - quality.candidate.value)
    assert quality.change.value == pytest.approx(-quality.drop)
    assert quality.change.low < quality.change.value < quality.change.high < 0
    assert quality.candidate.method == "wilson"


def test_top_k_counts_more_than_top_1(tmp_path):
    two = compared(tmp_path, "top-2").quality
    _, after, labels = by_hand()
    best = np.argsort(-after, axis=1, kind="stable")[:, :2]
    assert two.candidate.value == (best == labels[:, None]).any(1).mean()


def test_metrics_against_the_original(tmp_path):
    before, after, _ = by_hand()
    agreement = compared(tmp_path, "agreement").quality
    assert agreement.candidate.value == (before.argmax(1) == after.argmax(1)).mean()
    assert agreement.baseline is None
    assert agreement.drop == pytest.approx(1 - agreement.candidate.value)
    cosine = compared(tmp_path, "cosine").quality.candidate
    norms = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
    assert cosine.value == pytest.approx(float(((before * after).sum(1) / norms).mean()), abs=1e-5)
    assert cosine.low < cosine.value < cosine.high


def test_mse_against_labels_and_against_the_original(tmp_path):
    features, _ = comparisons.rows(50)
    targets = np.zeros((50, 4))
    np.savez(tmp_path / "t.npz", x=features, labels=targets)
    with_labels = compared(tmp_path, "mse", source=str(tmp_path / "t.npz")).quality
    after = features @ comparisons.weights(0.5)
    assert with_labels.better == "lower"
    assert with_labels.candidate.value == pytest.approx(float((after**2).mean()), rel=1e-4)
    np.savez(tmp_path / "u.npz", x=features)
    alone = compared(tmp_path, "mse", source=str(tmp_path / "u.npz")).quality
    apart = features @ (comparisons.weights(0.5) - comparisons.weights())
    assert alone.baseline is None
    assert alone.drop == pytest.approx(float((apart**2).mean()), rel=1e-4)


def test_metric_is_chosen_by_the_labels(tmp_path):
    assert compared(tmp_path, "").quality.metric == "top-1"
    features, _ = comparisons.rows(50)
    np.savez(tmp_path / "u.npz", x=features)
    assert compared(tmp_path, "", source=str(tmp_path / "u.npz")).quality.metric == "cosine"


def test_metric_of_a_users_function(tmp_path):
    (tmp_path / "own.py").write_text(
        "def loss(outputs, labels):\n"
        "    scores = outputs['logits']\n"
        "    return -scores[range(len(labels)), labels]\n"
        "loss.better = 'lower'\n"
    )
    quality = compared(tmp_path, f"{tmp_path}/own.py:loss").quality
    before, after, labels = by_hand()
    assert quality.better == "lower"
    assert quality.baseline.value == pytest.approx(-before[range(200), labels].mean(), rel=1e-4)
    assert quality.candidate.value == pytest.approx(-after[range(200), labels].mean(), rel=1e-4)
    assert quality.drop == quality.candidate.value - quality.baseline.value


def test_character_error_rate_with_a_users_decoder(tmp_path):
    (tmp_path / "own.py").write_text(
        "def text(outputs):\n    return ['abcd'[i] * 2 for i in outputs['logits'].argmax(1)]\n"
    )
    features, labels = comparisons.rows(40)
    texts = np.array(["abcd"[label] * 2 for label in labels])
    texts[:10] = "xx"
    np.savez(tmp_path / "t.npz", x=features, labels=texts)
    metric = f"character-error-rate:{tmp_path}/own.py:text"
    found = compared(tmp_path, metric, noise=0, source=str(tmp_path / "t.npz"))
    assert found.quality.metric == "character-error-rate"
    assert found.quality.baseline.value == found.quality.candidate.value == 0.25
    assert found.quality.change.value == 0
    assert found.agreement.value == 1


@pytest.mark.parametrize(
    ("metric", "error", "message"),
    [
        ("accuracy", RecipeError, "no metric is called 'accuracy'; it may be top-1"),
        ("top-1@gone", RecipeError, "m.onnx has no output 'gone'; it has logits"),
        ("character-error-rate", DataError, "names no characters in its metadata"),
        ("gone.py:f", RecipeError, "there is no file gone.py"),
    ],
)
def test_metrics_that_there_are_not(tmp_path, metric, error, message):
    with pytest.raises(error, match=message):
        compared(tmp_path, metric)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 1.0", r"gives shape \[\] for \d+ rows"),
        ("return 1 / 0", "fails: ZeroDivisionError"),
        ("return labels * float('nan')", "gives nan"),
    ],
)
def test_users_functions_that_are_wrong(tmp_path, body, message):
    (tmp_path / "own.py").write_text(f"def score(outputs, labels):\n    {body}\n")
    with pytest.raises(DataError, match=message):
        compared(tmp_path, f"{tmp_path}/own.py:score")


def test_labels_that_do_not_suit(tmp_path):
    features, labels = comparisons.rows(50)
    np.savez(tmp_path / "none.npz", x=features)
    with pytest.raises(DataError, match="metric top-1 needs labels"):
        compared(tmp_path, "top-1", source=str(tmp_path / "none.npz"))
    np.savez(tmp_path / "far.npz", x=features, labels=labels + 2)
    with pytest.raises(DataError, match="is not one of the model's 4 classes"):
        compared(tmp_path, "top-1", source=str(tmp_path / "far.npz"))
    np.savez(tmp_path / "texts.npz", x=features, labels=np.array(["a"] * 50))
    with pytest.raises(QuantizeError, match="one class number for each row"):
        compared(tmp_path, "top-1", source=str(tmp_path / "texts.npz"))


# Intervals.


def test_wilsons_interval():
    """Newcombe (1998), Statistics in Medicine 17, table I, method 3."""
    for successes, rows, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        found = intervals.wilson(successes, rows)
        assert (round(found.low, 4), round(found.high, 4)) == (low, high)


def test_bootstrap_agrees_with_the_normal_approximation():
    values = np.random.default_rng(3).exponential(size=4000)
    scores = Scores(values, np.ones(4000))
    found = intervals.estimate(scores, seed=0)
    half = 1.96 * values.std(ddof=1) / math.sqrt(4000)
    assert found.method == "bootstrap"
    assert found.high - found.low == pytest.approx(2 * half, rel=0.08)
    assert intervals.estimate(scores, seed=0) == found


def test_many_rows_take_the_normal_approximation():
    random = np.random.default_rng(3)
    weight = random.integers(1, 20, 50_000).astype(float)
    total = random.binomial(weight.astype(int), 0.1).astype(float)
    found = intervals.estimate(Scores(total, weight), seed=0)
    few = intervals.resampled(Scores(total[:20_000], weight[:20_000]), seed=0)
    assert (found.method, few.method) == ("normal", "bootstrap")
    assert found.low < 0.1 < found.high
    widths = (found.high - found.low) / (few.high - few.low)
    assert widths == pytest.approx(math.sqrt(20_000 / 50_000), rel=0.1)


def test_difference_of_equal_answers_has_an_interval_all_the_same():
    same = Scores(np.ones(100), np.ones(100))
    found = intervals.change(same, same, seed=0)
    assert found.value == 0
    assert -0.05 < found.low < 0 < found.high < 0.05
    assert found.method == "agresti-min"


def test_intervals_of_paired_differences_cover_the_truth():
    """Of 300 samples with a true change of -0.05 about 95 % of the intervals hold it."""
    random = np.random.default_rng(5)
    held = 0
    for _ in range(300):
        before = (random.random(400) < 0.9).astype(float)
        lost = random.random(400) < 0.05 / 0.9
        after = np.where(lost, 0, before)
        found = intervals.change(Scores(before, np.ones(400)), Scores(after, np.ones(400)), seed=0)
        held += found.low <= -0.05 <= found.high
    assert 270 <= held <= 300


@pytest.mark.parametrize(
    ("read", "wanted", "count"),
    [("", "", 0), ("abc", "abc", 0), ("abc", "", 3), ("kitten", "sitting", 3), ("ab", "ba", 2)],
)
def test_edits(read, wanted, count):
    assert edits(read, wanted) == edits(wanted, read) == count
