"""The gate's verdict and the report."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser

import comparisons
import msgspec
import pytest

from ds_quantize import data, evaluate, gate, report
from ds_quantize.evaluate import Estimate, Evaluation, Quality
from ds_quantize.limits import Gate


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory) -> Evaluation:
    folder = tmp_path_factory.mktemp("models")
    original = comparisons.classifier(folder / "m.onnx")
    candidate = comparisons.classifier(folder / "<c>.onnx", comparisons.weights(0.3))
    loaded = data.load(comparisons.saved(folder / "d.npz"))
    return evaluate.compare(
        original, candidate, loaded, "top-1", comparisons.context(folder), comparisons.QUICK
    )


def test_no_limits_pass(evaluation):
    verdict = gate.judge(Gate(), evaluation)
    assert verdict.passed
    assert verdict.reasons == ()
    assert verdict.values["size"] == evaluation.size


@pytest.mark.parametrize(
    ("limit", "loose", "tight", "reason"),
    [
        ("max_accuracy_drop", 0.9, 0.001, r"the drop of the metric is 0\.\d+; max_accuracy_drop"),
        ("min_accuracy", 0.1, 0.99, r"the metric is 0\.\d+; min_accuracy wants at least 0\.99"),
        ("min_agreement", 0.1, 0.999, "the agreement with the original is"),
        ("min_cosine", 0.1, 0.9999, "the cosine to the original is"),
        ("min_speedup", 1e-6, 1e6, "the speedup is"),
        ("max_size", 2, 0.5, "the size as a share of the original is"),
        ("max_latency_ms", 1e6, 1e-9, "the latency in ms is"),
    ],
)
def test_limits(evaluation, limit, loose, tight, reason):
    assert gate.judge(Gate(**{limit: loose}), evaluation).passed
    verdict = gate.judge(Gate(**{limit: tight}), evaluation)
    assert not verdict.passed
    assert len(verdict.reasons) == 1
    assert re.match(reason, verdict.reasons[0])


def test_all_limits_that_are_not_kept_are_told(evaluation):
    verdict = gate.judge(Gate(min_accuracy=1, max_size=0.1, min_agreement=0.1), evaluation)
    assert len(verdict.reasons) == 2


def test_what_was_not_measured_is_not_kept(evaluation):
    bare = msgspec.structs.replace(evaluation, agreement=None)
    (reason,) = gate.judge(Gate(min_agreement=0.5), bare).reasons
    assert (
        reason == "the agreement with the original was not measured, and min_agreement asks for it"
    )
    (reason,) = gate.judge(Gate(max_perplexity_increase=0.1), bare).reasons
    assert "perplexity" in reason


def test_perplexity_is_judged_by_its_share(evaluation):
    def perplexity(value):
        return Estimate(value, value, value, 10)

    metric = Quality("perplexity", "lower", perplexity(21.0), perplexity(20.0))
    text = msgspec.structs.replace(evaluation, metrics=(metric,))
    assert gate.judge(Gate(max_perplexity_increase=0.05), text).passed
    assert not gate.judge(Gate(max_perplexity_increase=0.04), text).passed


def test_fault_never_passes(evaluation):
    faulty = msgspec.structs.replace(evaluation, faults=("output 'y' has collapsed",))
    verdict = gate.judge(Gate(), faulty)
    assert not verdict.passed
    assert verdict.reasons == ("output 'y' has collapsed",)


def test_limit_that_is_just_kept(evaluation):
    quality = Quality("top-1", "higher", Estimate(0.94, 0.9, 1, 100), Estimate(0.95, 0.9, 1, 100))
    just = msgspec.structs.replace(evaluation, metrics=(quality,))
    assert gate.judge(Gate(max_accuracy_drop=0.01), just).passed
    assert not gate.judge(Gate(max_accuracy_drop=0.0099), just).passed


# The report.


class Page(HTMLParser):
    """What an HTML file refers to, and its text."""

    VOID = ("meta", "br", "img", "path", "use", "rect", "stop")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        names = ("href", "src", "xlink:href")
        self.links += [value for name, value in attrs if name in names]

    def handle_data(self, data):
        self.text += data


RECIPE = {"name": "mine", "gate": {"min_agreement": 0.999, "max_size": 2.0}, "steps": ["<int8>"]}


def written(folder, evaluation, limits):
    verdict = gate.judge(limits, evaluation)
    path = report.write(folder, evaluation, verdict, RECIPE, {"layers": 3})
    return Page(path.read_text()), json.loads((folder / "report.json").read_text())


def test_page_needs_no_other_file_and_shows_all(tmp_path, evaluation):
    page, _ = written(tmp_path, evaluation, Gate(min_agreement=0.999, max_size=2))
    assert [link for link in page.links if not link.startswith("#")] == []
    assert page.tags.count("svg") == 4
    for words in ("failed", "min_agreement wants at least", "not kept", "batch 8", "second"):
        assert words in page.text
    assert "<int8>" in page.text
    assert "int8" not in page.tags


def test_json_beside_it_says_the_same(tmp_path, evaluation):
    _, values = written(tmp_path, evaluation, Gate())
    assert values["verdict"]["passed"] is True
    assert msgspec.convert(values["evaluation"], Evaluation) == evaluation
    assert values["derived"]["speedup"] == pytest.approx(evaluation.speedup)
    assert values["recipe"] == RECIPE
    assert values["measured"] == {"layers": 3}


def test_report_of_little(tmp_path, evaluation):
    """Texts have no layers, no outputs and, where nothing was timed, no speed."""
    side = msgspec.structs.replace(evaluation.baseline, timings=(), memory_bytes=None)
    bare = msgspec.structs.replace(
        evaluation, baseline=side, candidate=side, agreement=None, cosine=None, outputs=(),
        layers=(),
    )  # fmt: skip
    page, values = written(tmp_path, bare, Gate())
    assert page.tags.count("svg") == 2
    assert values["derived"]["speedup"] is None
    assert math.isnan(bare.speedup)
