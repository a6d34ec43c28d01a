"""The comparison of language models: perplexity, and words that are foreseen.

OpenVINO's folders are run by OpenVINO. vLLM, which serves the others, is no library of ours: those
are run by transformers, on the CPU, which undoes or imitates the quantization just as the folder's
configuration says.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ds_engines.base import Array
from ds_quantize.context import Context
from ds_quantize.data import Data
from ds_quantize.errors import DataError, RecipeError, SourceError
from ds_quantize.evaluate import Options, engines, intervals, readers, steps
from ds_quantize.evaluate.intervals import Scores
from ds_quantize.evaluate.results import Estimate, Evaluation, Quality, Side, Timing
from ds_quantize.evaluate.words import Heard, Passage, heard, passages
from ds_quantize.forms import FolderModel, Model
from ds_quantize.llm_methods import folder
from ds_quantize.llm_methods.quiet import quiet
from ds_quantize.llm_methods.texts import texts, tokenizer_of

PERPLEXITY = "perplexity"
NEXT_WORD = "next-word"
METRICS = (PERPLEXITY, NEXT_WORD)

FEW = 100
"""Texts below which intervals are so wide that the reader should be told."""

RUN_BY = (
    "{} run by transformers on the CPU, not by the engine that serves such folders; speed and "
    "memory depend on that engine, and were not measured"
)
STEPS = (
    f"a latency is that of one more token for each of so many texts, {steps.PAST} tokens into them"
)


@dataclass
class Sums:
    """One model's sums, text by text. `best` are its guesses for all tokens, one array a text."""

    loss: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    right: list[int] = field(default_factory=list)
    words: list[int] = field(default_factory=list)
    best: list[Array] = field(default_factory=list)
    not_finite: list[int] = field(default_factory=list)

    def add(self, parts: list[Heard]) -> None:
        """What was heard of the passages of one text."""
        if not all(part.finite for part in parts):
            self.not_finite.append(len(self.loss))
        self.loss.append(math.fsum(part.loss for part in parts))
        self.tokens.append(sum(len(part.best) for part in parts))
        self.right.append(sum(part.right for part in parts))
        self.words.append(sum(part.words for part in parts))
        self.best.append(np.concatenate([part.best for part in parts]))


def compare(
    baseline: Model,
    candidate: Model,
    data: Data,
    metric: str,
    context: Context,
    options: Options,
) -> Evaluation:
    """See ds_quantize.evaluate.compare."""
    if metric not in ("", *METRICS):
        raise RecipeError(
            f"no metric of language models is called {metric!r}; it may be {' or '.join(METRICS)}"
        )
    first, second = _folder(baseline), _folder(candidate)
    read = _read(first.path, data)
    threads = engines.usable(context.threads)
    with folder.settings(context.seed, threads):
        theirs = _run(first, read, context, threads, "Original")
        ours = _run(second, read, context, threads, "Candidate")
    speeds = _speeds(first, second, options, context, threads)
    found = _perplexity(theirs, ours, context.seed), _next_word(theirs, ours, context.seed)
    return Evaluation(
        data=data.source,
        digest=data.digest,
        rows=data.rows,
        threads=threads,
        baseline=_side(first, speeds[0]),
        candidate=_side(second, speeds[1]),
        metrics=found[::-1] if metric == NEXT_WORD else found,
        agreement=_agreement(theirs, ours, context.seed),
        faults=tuple(_faults(theirs, ours)),
        notes=(*_notes(data, read), *_run_by(first, second), *((STEPS,) if speeds[0] else ())),
    )


def _folder(model: Model) -> FolderModel:
    """Raises SourceError for a model that is none."""
    if not isinstance(model, FolderModel):
        raise SourceError(f"a model of form {model.form!r} is no language model's folder")
    return model


def _read(path: Path, data: Data) -> list[list[Passage]]:
    """The passages of each text; by the original's tokenizer for both, which is the same."""
    tokenizer = tokenizer_of(path)
    most = folder.context_length(path)
    with quiet():
        read = [passages(text, tokenizer, most) for text in texts(data, tokenizer)]
    read = [parts for parts in read if parts]
    if not read:
        raise DataError(f"{data.source} holds no text of two tokens or more")
    return read


def _run(
    model: FolderModel, read: list[list[Passage]], context: Context, threads: int, whose: str
) -> Sums:
    """One model is in memory at a time."""
    sums = Sums()
    with readers.opened(model, threads) as scores:
        for parts in context.progress.track(read, f"{whose}: texts"):
            sums.add([heard(scores(part.ids), part) for part in parts])
    return sums


def _speeds(
    first: FolderModel, second: FolderModel, options: Options, context: Context, threads: int
) -> tuple[tuple[Timing, ...], tuple[Timing, ...]]:
    """Of both models by batch size, where the engine is the one that serves them."""
    if not first.form == second.form == "openvino" or options.seconds <= 0:
        return (), ()
    found = [
        steps.timed((first, second), batch, options.seconds, options.repeats, threads)
        for batch in context.progress.track(options.batches, "Speed")
    ]
    return tuple(pair[0] for pair in found), tuple(pair[1] for pair in found)


def _side(model: FolderModel, timings: tuple[Timing, ...]) -> Side:
    size = readers.size(model)
    return Side(str(model.path), readers.ENGINES[model.form], size, timings=timings)


def _run_by(first: FolderModel, second: FolderModel) -> Iterator[str]:
    others = [model.form == "huggingface" for model in (first, second)]
    if any(others):
        yield RUN_BY.format("both models were" if all(others) else "one of the models was")


def _perplexity(theirs: Sums, ours: Sums, seed: int) -> Quality:
    """The exponential of the mean loss of a token.

    The interval of the change is that of the ratio, at the original's perplexity.
    """
    before, after = _scores(theirs.loss, theirs.tokens), _scores(ours.loss, ours.tokens)
    original = _exponential(intervals.resampled(before, seed))
    ratio = _exponential(intervals.change(before, after, seed))
    base = original.value
    change = Estimate(
        base * (ratio.value - 1), base * (ratio.low - 1), base * (ratio.high - 1), ratio.rows,
        ratio.method,
    )  # fmt: skip
    made = _exponential(intervals.resampled(after, seed))
    return Quality(PERPLEXITY, "lower", made, original, change)


def _next_word(theirs: Sums, ours: Sums, seed: int) -> Quality:
    """The share of words that are foreseen from what stands before them."""
    before, after = _scores(theirs.right, theirs.words), _scores(ours.right, ours.words)
    return Quality(
        NEXT_WORD,
        "higher",
        intervals.resampled(after, seed),
        intervals.resampled(before, seed),
        intervals.change(before, after, seed),
    )


def _agreement(theirs: Sums, ours: Sums, seed: int) -> Estimate:
    same = [float((a == b).sum()) for a, b in zip(theirs.best, ours.best, strict=True)]
    return intervals.resampled(_scores(same, theirs.tokens), seed)


def _scores(total: list[float] | list[int], weight: list[int]) -> Scores:
    return Scores(np.array(total, np.float64), np.array(weight, np.float64))


def _exponential(log: Estimate) -> Estimate:
    value, low, high = (math.exp(number) for number in (log.value, log.low, log.high))
    return Estimate(value, low, high, log.rows, log.method)


def _faults(theirs: Sums, ours: Sums) -> Iterator[str]:
    broken = [row for row in ours.not_finite if row not in theirs.not_finite]
    if broken:
        yield f"the output is NaN or infinite at text {broken[0]}, where the original's is finite"
        return
    guesses, before = np.concatenate(ours.best), np.concatenate(theirs.best)
    if len(guesses) >= FEW and len(np.unique(guesses)) == 1 < len(np.unique(before)):
        yield f"the output has collapsed: token {guesses[0]} is the guess everywhere"


def _notes(data: Data, read: list[list[Passage]]) -> Iterator[str]:
    tokens = sum(len(part.ids) - 1 for parts in read for part in parts)
    yield f"{tokens:,} tokens of {len(read):,} texts were foreseen, each text by itself"
    if len(read) < data.rows:
        yield f"{data.rows - len(read)} texts of less than two tokens were left out"
    if len(read) < FEW:
        yield f"only {len(read)} texts: the intervals are wide"
