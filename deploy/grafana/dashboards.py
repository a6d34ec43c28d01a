"""Writes the Grafana dashboards beside this file; `--check` tells whether they are up to date."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from panels import CHAT, COST, HOST, OVERVIEW, TENSOR, Panel
from queries import SERVERS

FOLDER = Path(__file__).parent
WIDTH, HEIGHT, COLUMNS = 8, 7, 3

Json = dict[str, Any]

DASHBOARDS = {
    "overview": ("ds-serve: overview", OVERVIEW),
    "model": ("ds-serve: tensor models", TENSOR),
    "text": ("ds-serve: text models", CHAT),
    "host": ("ds-serve: machines", HOST),
    "cost": ("ds-serve: cost", COST),
}


def dashboard(name: str) -> Json:
    title, panels = DASHBOARDS[name]
    return {
        "uid": f"ds-serve-{name}",
        "title": title,
        "tags": ["ds-serve"],
        "schemaVersion": 41,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "links": [
            {"type": "dashboards", "tags": ["ds-serve"], "title": "ds-serve", "keepTime": True}
        ],
        "templating": {"list": list(_variables(name))},
        "panels": [_panel(index, panel) for index, panel in enumerate(panels)],
    }


def _variables(name: str) -> Iterator[Json]:
    yield {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    yield _choice("job", "label_values(ds_model_ready, job)")
    yield _choice("instance", 'label_values(ds_model_ready{job=~"$job"}, instance)')
    if name in ("model", "text"):
        yield _choice("model", f"label_values(ds_model_ready{{{SERVERS}}}, model)")
    if name == "cost":
        about = {"label": "Price of a server, an hour", "type": "textbox", "query": "1"}
        yield {"name": "price", **about, "current": {"text": "1", "value": "1"}}


def _choice(name: str, query: str) -> Json:
    return {
        "name": name,
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


_SOURCE = {"type": "prometheus", "uid": "${source}"}


def _panel(index: int, panel: Panel) -> Json:
    return {
        "id": index + 1,
        "type": panel.kind,
        "title": panel.title,
        **({"description": panel.about} if panel.about else {}),
        "datasource": _SOURCE,
        "gridPos": {
            "x": index % COLUMNS * WIDTH, "y": index // COLUMNS * HEIGHT, "w": WIDTH, "h": HEIGHT,
        },
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + place), "expr": query.text, "legendFormat": query.legend}
            for place, query in enumerate(panel.queries)
        ],
    }  # fmt: skip


def text(name: str) -> str:
    return json.dumps(dashboard(name), indent=1, ensure_ascii=False) + "\n"


def main() -> int:
    stale = [name for name in DASHBOARDS if not _is(FOLDER / f"{name}.json", text(name))]
    if "--check" in sys.argv:
        for name in stale:
            print(
                f"{name}.json is out of date: python deploy/grafana/dashboards.py", file=sys.stderr
            )
        return 1 if stale else 0
    for name in stale:
        (FOLDER / f"{name}.json").write_text(text(name))
    return 0


def _is(file: Path, wanted: str) -> bool:
    return file.exists() and file.read_text() == wanted


if __name__ == "__main__":
    sys.exit(main())
