"""The report as a page that needs no other file."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import msgspec

from ds_quantize.gate import CHECKS
from ds_quantize.report import pareto, plots
from ds_quantize.report.values import TIMES, estimate, number, plain, signed, size

if TYPE_CHECKING:
    from ds_quantize.evaluate.results import Evaluation, LayerError, Quality
    from ds_quantize.forms import Measured
    from ds_quantize.gate import Verdict

PAGE = Path(__file__).with_name("page.html")
LISTED = 20
"""Layers in the table; all of them are in the JSON."""

OWN = (
    "A layer's <i>error</i> is the norm of the difference between both models' outputs of that "
    "layer over the norm of the original's, both fed from the inputs; its <i>own error</i> is the "
    "part that was not there in its inputs. Layers with a large one are the first to be kept as "
    "they were."
)

Rows = Iterable[Sequence[str]]


def page(evaluation: Evaluation, verdict: Verdict, recipe: Any, measured: Measured) -> str:
    """The HTML."""
    said = plain(recipe)
    name = said.get("name", "") if isinstance(said, dict) else ""
    sections = (
        *_stand_in(evaluation),
        *_reasons(verdict),
        *_limits(said, verdict),
        *_quality(evaluation),
        *_speed(evaluation),
        *_space(evaluation),
        *_layers(evaluation),
        *_search(measured),
        *_notes(evaluation),
        *_source("Recipe", said),
        *_source("Measured on the way", measured),
    )
    original = Path(evaluation.baseline.path).name
    return Template(PAGE.read_text(encoding="utf-8")).substitute(
        title=_text(f"{original}, quantized: {name}" if name else f"{original}, quantized"),
        about=_text(_about(evaluation)),
        state="passed" if verdict.passed else "failed",
        verdict="passed" if verdict.passed else "failed",
        cards="".join(_cards(evaluation)),
        sections="\n".join(sections),
    )


def _about(evaluation: Evaluation) -> str:
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    models = "original and stand-in" if evaluation.stand_in else "both models"
    threads = f"{evaluation.threads} thread{'' if evaluation.threads == 1 else 's'}"
    return (
        f"{evaluation.rows:,} rows of {evaluation.data}, {models} in {evaluation.baseline.engine} "
        f"with {threads}, {when}"
    )


def _cards(evaluation: Evaluation) -> Iterator[str]:
    quality = evaluation.quality
    before = "" if quality.baseline is None else f"{number(quality.baseline.value)} before"
    yield _card(quality.metric, number(quality.candidate.value), before)
    for name in ("agreement", "cosine"):
        found = getattr(evaluation, name)
        if found is not None and name != quality.metric:
            yield _card(name, number(found.value), "with the original")
    if evaluation.speedups:
        each = ", ".join(f"{ratio:.2f}{TIMES}" for ratio in evaluation.speedups.values())
        batches = ", ".join(map(str, evaluation.speedups))
        yield _card("speedup", f"{evaluation.speedup:.2f}{TIMES}", f"{each} at batch {batches}")
    sizes = [size(side.size_bytes) for side in (evaluation.baseline, evaluation.candidate)]
    yield _card("size", f"{100 * evaluation.size:.0f} %", " → ".join(sizes))


def _card(label: str, value: str, below: str) -> str:
    return (
        f'<div class="card"><span>{_text(label)}</span><b>{_text(value)}</b>'
        f"<span>{_text(below)}</span></div>"
    )


def _stand_in(evaluation: Evaluation) -> Iterator[str]:
    if evaluation.stand_in:
        yield _section("Not run here", _list((evaluation.stand_in,)), "notes")


def _reasons(verdict: Verdict) -> Iterator[str]:
    if verdict.reasons:
        yield _section("Why it failed", _list(verdict.reasons), "reasons")


def _limits(recipe: Any, verdict: Verdict) -> Iterator[str]:
    """Each limit that the recipe sets, beside what was measured."""
    limits = recipe.get("gate") if isinstance(recipe, dict) else None
    rows = [
        (
            f"<code>{check.name}</code>",
            number(limits[check.name]),
            number(verdict.values[check.key]) if check.key in verdict.values else "not measured",
            _mark(check.keeps(verdict.values.get(check.key, float("nan")), limits[check.name])),
        )
        for check in CHECKS
        if limits and limits.get(check.name) is not None
    ]
    if rows:
        yield _section("Limits", _table(("limit", "#wanted", "#measured", ""), rows))


def _mark(kept: bool) -> str:
    return '<span class="yes">✓ kept</span>' if kept else '<span class="no">✗ not kept</span>'


def _quality(evaluation: Evaluation) -> Iterator[str]:
    rows = [row for quality in evaluation.metrics for row in _quality_rows(quality)]
    for name in ("agreement", "cosine"):
        found = getattr(evaluation, name)
        if found is not None and evaluation.metric(name) is None:
            rows.append((f"{name} with the original", "", estimate(found), "", str(found.method)))
    head = ("metric", "#original", "#candidate", "#change", "interval")
    outputs = [
        (_text(o.name), number(o.cosine), number(o.mse), number(o.largest))
        for o in evaluation.outputs
    ]
    body = plots.quality(evaluation) + _table(head, rows)
    if outputs:
        each = ("output", "#cosine", "#mean squared error", "#largest difference")
        body += "<details><summary>outputs one by one</summary>" + _table(each, outputs)
        body += "</details>"
    note = '<p class="note">Values with 95 % intervals; the change is of the same rows.</p>'
    yield _section("Quality", body + note)


def _quality_rows(quality: Quality) -> Iterator[Sequence[str]]:
    yield (
        f"{_text(quality.metric)}, {quality.better} is better",
        estimate(quality.baseline) if quality.baseline else "",
        estimate(quality.candidate),
        signed(quality.change) if quality.change else "",
        quality.candidate.method,
    )


def _speed(evaluation: Evaluation) -> Iterator[str]:
    if not evaluation.speedups:
        return
    rows = [
        (
            str(before.batch),
            f"{number(before.latency_ms)} / {number(before.latency_p99_ms)}",
            f"{number(after.latency_ms)} / {number(after.latency_p99_ms)}",
            number(before.rows_per_s),
            number(after.rows_per_s),
            f"{before.latency_ms / after.latency_ms:.2f}{TIMES}",
        )
        for before, after in zip(
            evaluation.baseline.timings, evaluation.candidate.timings, strict=True
        )
    ]
    head = (
        "batch", "#original, ms (p99)", "#candidate, ms (p99)", "#original, rows/s",
        "#candidate, rows/s", "#speedup",
    )  # fmt: skip
    note = (
        '<p class="note">Medians of turns that both engines took alternately, on the same rows; '
        "whiskers are the fastest and the slowest turn. One batch at a time.</p>"
    )
    yield _section("Speed", plots.speed(evaluation) + _table(head, rows) + note)


def _space(evaluation: Evaluation) -> Iterator[str]:
    yield _section("Size and memory", plots.space(evaluation))


def _layers(evaluation: Evaluation) -> Iterator[str]:
    found = evaluation.layers
    if not found:
        return
    worst = sorted(found, key=lambda layer: layer.rank)[:LISTED]
    head = ("#rank", "layer", "operator", "#own error", "#error", "#cosine")
    body = f"<p>{OWN}</p>{plots.layers(found)}"
    body += f"<details><summary>{len(worst)} of {len(found)} layers, the most sensitive first"
    body += f"</summary>{_table(head, map(_layer_row, worst))}</details>"
    yield _section("Layers", body)


def _layer_row(layer: LayerError) -> Sequence[str]:
    error = f"{100 * layer.error:.2f} %" if layer.finite else "not finite"
    own = f"{100 * layer.own:.2f} %"
    name = f'<span class="name">{_text(layer.name)}</span>'
    return (str(layer.rank), name, _text(layer.op), own, error, number(layer.cosine))


def _search(measured: Measured) -> Iterator[str]:
    """What else was tried, where recipes were searched through."""
    if found := measured.get("search"):
        body = pareto.picture(found) + _table(pareto.HEAD, pareto.rows(found))
        yield _section("Search", body)


def _notes(evaluation: Evaluation) -> Iterator[str]:
    if evaluation.notes:
        yield _section("Notes", _list(evaluation.notes), "notes")


def _source(title: str, value: Any) -> Iterator[str]:
    """Data as it is."""
    if value:
        text = msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=2).decode()
        yield _section(title, f"<pre>{_text(text)}</pre>")


def _section(title: str, body: str, kind: str = "") -> str:
    return f'<section class="{kind}"><h2>{_text(title)}</h2>{body}</section>'


def _list(texts: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{_text(text)}</li>" for text in texts) + "</ul>"


def _table(head: Sequence[str], rows: Rows) -> str:
    """Cells are HTML; a column whose head begins with `#` holds numbers."""
    kinds = [' class="n"' if cell.startswith("#") else "" for cell in head]
    top = "".join(
        f"<th{k}>{_text(c.removeprefix('#'))}</th>" for k, c in zip(kinds, head, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(f"<td{k}>{cell}</td>" for k, cell in zip(kinds, row, strict=True))
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _text(text: str) -> str:
    return html.escape(str(text))
