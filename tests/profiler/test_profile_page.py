"""The HTML report: complete, well-formed, self-contained."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from ds_engines.layers import Layer, LayerProfile
from ds_profile import flame, page
from ds_profile.page import Report
from ds_profile.stages import summarise
from ds_profile.traces import Trace

NAMES = [
    "HTTP_RECV_START", "HTTP_RECV_END", "REQUEST_START", "QUEUE_START", "COMPUTE_START",
    "COMPUTE_INPUT_END", "COMPUTE_OUTPUT_START", "COMPUTE_END", "REQUEST_END",
    "HTTP_SEND_START", "HTTP_SEND_END",
]  # fmt: skip
LAYERS = LayerProfile(
    "onnxruntime",
    10,
    1000.0,
    (
        Layer("net/block/Conv_<1>", "Conv", 700.0),
        Layer("net/block/Relu", "Relu", 100.0),
        Layer("head", "MatMul", 200.0),
    ),
)
VOID = {"meta", "rect"}


class Wellformed(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def report() -> str:
    times = {name: 1_000_000 * index for index, name in enumerate(NAMES)}
    stages = summarise([Trace("<mlp>", 1, "", times)] * 5)
    return page.render(
        Report("ds-profile: <mlp>", stages, ["Say & do."], {"rate": "7/s"}, LAYERS, 4)
    )


def test_one_file_without_anything_from_elsewhere() -> None:
    html = report()
    parser = Wellformed()
    parser.feed(html)
    assert parser.open == []
    assert parser.tags.count("svg") == 3
    assert not re.search(r"(?:src|href)=|https?://|@import|url\(", html)
    assert "$" not in re.sub(r"\$\{", "", html)


def test_names_are_escaped() -> None:
    html = report()
    assert "<mlp>" not in html
    assert "&lt;mlp&gt; over HTTP: 5 traces" in html
    assert "Conv_&lt;1&gt;" in html
    assert "Say &amp; do." in html


def test_layers_are_a_tree_in_which_boxes_hold_their_parts() -> None:
    root = flame.layers_box(LAYERS)
    assert [(box.name, box.us) for box in root.inside] == [("net/block", 800.0), ("head", 200.0)]
    assert [(box.name, box.note) for box in root.inside[0].inside] == [
        ("Conv_<1>", "Conv"),
        ("Relu", "Relu"),
    ]
    assert root.us == sum(box.us for box in root.inside)


def test_the_layers_fill_the_time_of_compute() -> None:
    times = {name: 1_000_000 * index for index, name in enumerate(NAMES)}
    (stages,) = summarise([Trace("mlp", 1, "", times)])
    root = flame.request_box(stages.typical[0], LAYERS)
    assert [box.name for box in root.inside] == ["gateway", "worker", "gateway"]
    assert sum(box.us for box in root.inside) == root.us == 10_000
    compute = next(box for box in root.inside[1].inside if box.name == "compute")
    assert sum(box.us for box in compute.inside) == compute.us == 1000


def test_text_is_cut_where_its_box_ends() -> None:
    assert flame.shortened("compute", 200) == "compute"
    assert flame.shortened("compute 12 ms", 60) == "compute…"
    assert flame.shortened("compute", 20) == ""


def test_durations_in_fitting_units() -> None:
    given = (0.4, 45.2, 3210.0, 2_500_000.0)
    assert [flame.duration(us) for us in given] == ["0.4 µs", "45 µs", "3.21 ms", "2.50 s"]
