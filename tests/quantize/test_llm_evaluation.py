"""Perplexity and foreseen words, against what they are by their definitions."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import tiny_language_model
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ds_quantize import data, evaluate, gate
from ds_quantize.context import Context
from ds_quantize.errors import DataError, RecipeError
from ds_quantize.evaluate import Evaluation
from ds_quantize.forms import FolderModel
from ds_quantize.limits import Gate
from ds_quantize.progress import Silent


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> FolderModel:
    return FolderModel(tiny_language_model.made(tmp_path_factory.mktemp("tiny")))


def changed(model: FolderModel, folder: Path, scale: float) -> FolderModel:
    """The model with one weight multiplied."""
    loaded = AutoModelForCausalLM.from_pretrained(model.path)
    with torch.no_grad():
        loaded.model.norm.weight.mul_(scale)
    loaded.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model.path).save_pretrained(folder)
    return FolderModel(folder)


def written(folder: Path, text: str, name: str = "e.txt") -> data.Data:
    (folder / name).write_text(text)
    return data.load(str(folder / name))


def compared(
    first: FolderModel, second: FolderModel, rows: data.Data, metric: str = ""
) -> Evaluation:
    context = Context(second.path, Silent(), first, threads=2)
    return evaluate.compare(first, second, rows, metric, context)


def by_hand(model: FolderModel, texts: list[str]) -> float:
    tokenizer = AutoTokenizer.from_pretrained(model.path)
    loaded = AutoModelForCausalLM.from_pretrained(model.path)
    loss = tokens = 0.0
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            loss += float(loaded(ids, labels=ids).loss) * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    return math.exp(loss / tokens)


def test_perplexity_is_that_of_the_models_own_loss(model: FolderModel, tmp_path: Path) -> None:
    texts = tiny_language_model.lines(6, seed=3)
    worse = changed(model, tmp_path / "worse", 0.5)
    found = compared(model, worse, written(tmp_path, "\n".join(texts)))
    quality = found.metric("perplexity")
    assert quality is found.quality
    assert quality is not None
    assert quality.baseline is not None
    before, after = by_hand(model, texts), by_hand(worse, texts)
    assert quality.baseline.value == pytest.approx(before, rel=1e-4)
    assert quality.candidate.value == pytest.approx(after, rel=1e-4)
    assert quality.change is not None
    assert quality.change.value == pytest.approx(after - before, rel=1e-3)
    verdict = gate.judge(Gate(max_perplexity_increase=0.0001), found)
    assert not verdict.passed
    assert verdict.values["perplexity_increase"] == pytest.approx(after / before - 1, rel=1e-3)


def test_a_model_against_itself_changes_nothing(model: FolderModel, tmp_path: Path) -> None:
    found = compared(model, model, written(tmp_path, "\n".join(tiny_language_model.lines(4))))
    assert found.agreement is not None
    assert found.agreement.value == 1
    assert all(quality.change.value == 0 for quality in found.metrics if quality.change)
    assert found.faults == ()
    assert found.size == 1


def test_words_that_a_model_writes_itself_are_foreseen(model: FolderModel, tmp_path: Path) -> None:
    """A text that the model has written, greedily, is foreseen after its first words."""
    tokenizer = AutoTokenizer.from_pretrained(model.path)
    loaded = AutoModelForCausalLM.from_pretrained(model.path)
    start = tokenizer("the cat", return_tensors="pt")["input_ids"]
    ids = loaded.generate(start, max_new_tokens=40, do_sample=False, pad_token_id=0)[0]
    text = " ".join(tokenizer.decode(ids).split())
    again = tokenizer(text)["input_ids"]
    with torch.no_grad():
        best = loaded(torch.tensor([again])).logits[0, :-1].argmax(-1).tolist()
    pieces = [tokenizer.decode([token]) for token in again]
    right, words = _counted(pieces, [a == b for a, b in zip(best, again[1:], strict=True)])
    found = compared(model, model, written(tmp_path, text), "next-word")
    assert found.quality.metric == "next-word"
    assert found.quality.candidate.value == pytest.approx(right / words)


def _counted(pieces: list[str], hits: list[bool]) -> tuple[int, int]:
    """Words are told by the spaces that their first tokens begin with."""
    groups: list[list[bool]] = []
    for piece, hit in zip(pieces, [False, *hits], strict=True):
        if not groups or piece.startswith(" "):
            groups.append([])
        if piece.strip():
            groups[-1].append(hit)
    judged = [group for group in groups[1:] if group]
    return sum(all(group) for group in judged), len(judged)


def test_scores_that_are_not_finite_are_a_fault(model: FolderModel, tmp_path: Path) -> None:
    broken = changed(model, tmp_path / "broken", math.nan)
    found = compared(model, broken, written(tmp_path, "the cat sat on a mat\n" * 2))
    assert found.faults == (
        "the output is NaN or infinite at text 0, where the original's is finite",
    )
    assert not gate.judge(Gate(), found).passed


def test_messages_are_read_by_the_chat_template(model: FolderModel, tmp_path: Path) -> None:
    said = '{"messages": [{"role": "user", "content": "the cat"}]}'
    chat = compared(model, model, written(tmp_path, said, "e.jsonl"))
    plain = compared(model, model, written(tmp_path, '{"text": "user: the cat\\n"}', "p.jsonl"))
    assert chat.quality.candidate.value == plain.quality.candidate.value


def test_long_texts_are_cut_and_short_ones_left_out(model: FolderModel, tmp_path: Path) -> None:
    found = compared(model, model, written(tmp_path, "the cat sat " * 200 + "\nt\n"))
    assert any("1 texts of less than two tokens" in note for note in found.notes)
    with pytest.raises(DataError, match="no text of two tokens"):
        compared(model, model, written(tmp_path, "t\n", "short.txt"))


def test_other_metrics_are_refused(model: FolderModel, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="may be perplexity or next-word"):
        compared(model, model, written(tmp_path, "the cat"), "top-1")
