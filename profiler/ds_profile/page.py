"""The report as one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from string import Template

from ds_engines.layers import LayerProfile
from ds_profile import flame
from ds_profile.stages import PERCENTILES, Row, Stages
from ds_profile.text import operators

LAYERS_SHOWN = 25


@dataclass(frozen=True)
class Report:
    """`facts` are shown at the top, such as {"rate": "1,204/s"}; `batch` is the rows of the batch
    whose layers were timed.
    """

    title: str
    stages: Sequence[Stages]
    advice: Sequence[str]
    facts: Mapping[str, str] = field(default_factory=dict)
    layers: LayerProfile | None = None
    batch: int = 1


def render(report: Report) -> str:
    """The whole page."""
    template = Template(files("ds_profile").joinpath("page.html").read_text(encoding="utf-8"))
    body = [_facts(report.facts), _advice(report.advice)]
    for stages in report.stages:
        layers = report.layers if stages is report.stages[0] else None
        body.append(_stages(stages, layers))
    if report.layers is not None:
        body.append(_layers(report.layers, report.batch))
    return template.substitute(title=escape(report.title), body="\n".join(body))


def _facts(facts: Mapping[str, str]) -> str:
    cells = "".join(
        f"<div><b>{escape(value)}</b>{escape(name)}</div>" for name, value in facts.items()
    )
    return f'<div class="facts">{cells}</div>' if cells else ""


def _advice(advice: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(each)}</li>" for each in advice) + "</ul>"


def _stages(stages: Stages, layers: LayerProfile | None) -> str:
    names = [row.stage.name for row in stages.rows]
    head = ("stage", "mean", *(f"p{p}" for p in PERCENTILES), "share", "what it is")
    body = [_stage_cells(row) for row in (*stages.rows, stages.total)]
    whole = flame.request_box(stages.typical[0], layers)
    inside = " and layers" if layers is not None else ""
    return f"""
<h2>{escape(stages.model)} over {escape(stages.protocol)}: {stages.count:,} traces</h2>
<p>How the mean request, and the requests around each percentile, spent their time.</p>
{flame.bars(stages)}
<p class="legend">{flame.legend(names)}</p>
<h3>The mean request</h3>
<p>Processes, stages{inside}, from left to right as time goes, the network apart. Click a box to
widen it.</p>
{flame.flame(whole, f"mean request of {stages.model}")}
{_table(head, body, total=True)}"""


def _stage_cells(row: Row) -> list[str]:
    times = [flame.duration(us) for us in (row.mean, *row.percentiles)]
    return [row.stage.name, *times, f"{row.share:.1%}", row.stage.what]


def _layers(profile: LayerProfile, batch: int) -> str:
    slowest = sorted(profile.layers, key=lambda layer: -layer.us)[:LAYERS_SHOWN]
    whole = sum(layer.us for layer in profile.layers) or 1.0
    by_layer = [
        [each.name, each.op, flame.duration(each.us), f"{each.us / whole:.1%}"] for each in slowest
    ]
    by_operator = [
        [op, str(count), flame.duration(us), f"{us / whole:.1%}"]
        for op, count, us in operators(profile)
    ]
    rest = len(profile.layers) - len(slowest)
    return f"""
<h2>Layers in {escape(profile.engine)}</h2>
<p>A batch of {batch} takes {flame.duration(profile.run_us)} under the engine's profiler, the mean
of {profile.runs} runs. Boxes are parts of the layers' names, in the order in which they run.</p>
{flame.flame(flame.layers_box(profile), "layers")}
<div class="columns"><div><h3>By operator</h3>
{_table(("operator", "layers", "time", "share"), by_operator)}</div>
<div><h3>By layer</h3>
{_table(("layer", "operator", "time", "share"), by_layer)}
{f"<p>{rest} more are quicker.</p>" if rest else ""}</div></div>"""


def _table(head: Iterable[str], rows: Sequence[Sequence[str]], total: bool = False) -> str:
    def row(cells: Iterable[str], tag: str, kind: str = "") -> str:
        inside = "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells)
        return f"<tr{kind}>{inside}</tr>"

    body = [row(cells, "td") for cells in rows]
    if total:
        body[-1] = row(rows[-1], "td", ' class="total"')
    return f"<table><thead>{row(head, 'th')}</thead><tbody>{''.join(body)}</tbody></table>"
