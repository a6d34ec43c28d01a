"""Dashboards and alerts as files: generated, complete, and firing when they should."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import deploy_tools
import pytest
import yaml

ROOT = Path(__file__).parents[2]
GRAFANA = ROOT / "deploy" / "grafana"
PROMETHEUS = ROOT / "deploy" / "prometheus"
ALERTS = PROMETHEUS / "alerts.yaml"
BOARDS = sorted(GRAFANA.glob("*.json"))

RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]
]

FIRING = {
    "DsServeDown": [('up{job="ds-serve"}', "0x60")],
    "DsModelNotReady": [('ds_model_ready{model="m"}', "0x60")],
    "DsWorkerRestarts": [('ds_worker_restarts_total{model="m"}', "0+1x60")],
    "DsServerErrors": [
        ('ds_gateway_responses_total{protocol="http",code="503"}', "0+60x60"),
        ('ds_gateway_responses_total{protocol="http",code="200"}', "0+600x60"),
    ],
    "DsRefusals": [
        ('ds_gateway_responses_total{protocol="grpc",code="RESOURCE_EXHAUSTED"}', "0+60x60"),
        ('ds_gateway_responses_total{protocol="grpc",code="OK"}', "0+600x60"),
    ],
    "DsOverloaded": [('ds_load{model="m"}', "1.5x60")],
    "DsModelFailures": [
        ('nv_inference_request_failure{model="m",reason="BACKEND"}', "0+60x60"),
        ('nv_inference_request_success{model="m"}', "0+600x60"),
    ],
    "DsSlowTensors": [
        ('ds_request_seconds_bucket{model="m",le="1"}', "0x60"),
        ('ds_request_seconds_bucket{model="m",le="5"}', "0+60x60"),
        ('ds_request_seconds_bucket{model="m",le="+Inf"}', "0+60x60"),
    ],
    "DsSlowFirstToken": [
        ('vllm:time_to_first_token_seconds_bucket{model_name="m",le="5"}', "0x60"),
        ('vllm:time_to_first_token_seconds_bucket{model_name="m",le="10"}', "0+60x60"),
        ('vllm:time_to_first_token_seconds_bucket{model_name="m",le="+Inf"}', "0+60x60"),
    ],
    "DsKvCacheFull": [('vllm:kv_cache_usage_perc{model_name="m"}', "0.99x60")],
    "DsUpstreamAvoided": [('ds_upstream_breaker{model="m"}', "2x60")],
    "DsHostMemory": [
        ('nv_cpu_memory_used_bytes{instance="a"}', "99x60"),
        ('nv_cpu_memory_total_bytes{instance="a"}', "100x60"),
    ],
}
"""What each alert is about, as promtool writes series: an hour, a value each minute."""

CALM = [
    ('up{job="ds-serve"}', "1x60"),
    ('ds_model_ready{model="m"}', "1x60"),
    ('ds_worker_restarts_total{model="m"}', "0x10 1x49"),
    ('ds_gateway_responses_total{protocol="http",code="200"}', "0+600x60"),
    ('ds_gateway_responses_total{protocol="http",code="503"}', "0x30 1x29"),
    ('ds_gateway_responses_total{protocol="http",code="400"}', "0+600x60"),
    ('ds_load{model="m",instance="a"}', "2x60"),
    ('ds_load{model="m",instance="b"}', "0.5x60"),
    ('nv_inference_request_failure{model="m",reason="CANCELED"}', "0+60x60"),
    ('nv_inference_request_failure{model="m",reason="BACKEND"}', "0x60"),
    ('nv_inference_request_success{model="m"}', "0+600x60"),
    ('ds_request_seconds_bucket{model="m",le="0.5"}', "0+60x60"),
    ('ds_request_seconds_bucket{model="m",le="+Inf"}', "0+60x60"),
    ('vllm:time_to_first_token_seconds_bucket{model_name="m",le="1"}', "0+60x60"),
    ('vllm:time_to_first_token_seconds_bucket{model_name="m",le="+Inf"}', "0+60x60"),
    ('vllm:kv_cache_usage_perc{model_name="m"}', "0.5x60"),
    ('ds_upstream_breaker{model="m"}', "0x60"),
    ('nv_cpu_memory_used_bytes{instance="a"}', "50x60"),
    ('nv_cpu_memory_total_bytes{instance="a"}', "100x60"),
]

PAID = [
    ('up{job="ds-serve",instance="a"}', "1x60"),
    ('up{job="ds-serve",instance="b"}', "1x60"),
    ('up{job="ds-serve",instance="gone"}', "0x60"),
    # In a second of both servers: 20 requests for one model, 2 for the other, which take a fifth of
    # a second and three fifths in their engines; 2 chats of 100 tokens each.
    *(
        (f'{name}{{job="ds-serve",instance="{server}",{labels}}}', f"0+{60 * each}x60")
        for server in ("a", "b")
        for name, labels, each in (
            ("nv_inference_request_success", 'model="small"', 10),
            ("nv_inference_request_success", 'model="large"', 1),
            ("ds_engine_seconds_total", 'model="small"', 0.1),
            ("ds_engine_seconds_total", 'model="large"', 0.3),
            ("vllm:request_success_total", 'model_name="chat"', 1),
            ("vllm:generation_tokens_total", 'model_name="chat"', 100),
        )
    ),
]
"""Two servers, and one that is down."""

COSTS = {
    # At 2.5 an hour for each server: 5 an hour, so 1,388.89 in a million seconds.
    "Cost an hour": {"": 5},
    "Cost of a million tensor requests": {"": 63.131},  # 1,388.89 / 22
    "Cost of a million tokens written": {"": 6.944},  # 1,388.89 / 200
    "Cost of a million answers": {"": 57.87},  # 1,388.89 / 24
    "Cost of a million requests, by model": {
        'model="small"': 17.361,  # a quarter of the engines' time: 347.22 / 20
        'model="large"': 520.833,  # three quarters: 1,041.67 / 2
    },
    "Cost of a million tokens written, by model": {'model_name="chat"': 6.944},
}
"""What the panels of cost.json show of that, computed by hand, to three decimals."""


def promtool(*arguments: str | Path) -> str:
    command = [deploy_tools.promtool(), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def firing_after_an_hour(
    folder: Path, cases: list[tuple[list[tuple[str, str]], list[str]]]
) -> None:
    """Each case: series, and the names of the alerts that fire; no other does."""
    tests = [
        {
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in series],
            "promql_expr_test": [
                {
                    "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                    "eval_time": "55m",
                    "exp_samples": [
                        {"labels": f'{{alertname="{name}"}}', "value": 1} for name in names
                    ],
                }
            ],
        }
        for series, names in cases
    ]
    file = folder / "alerts_test.yaml"
    file.write_text(json.dumps({"rule_files": [str(ALERTS)], "tests": tests}))
    promtool("test", "rules", file)


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub and mkdocs make them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_dashboards_are_as_the_script_writes_them() -> None:
    command = [sys.executable, GRAFANA / "dashboards.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("board", BOARDS, ids=lambda path: path.stem)
def test_panels_do_not_overlap_and_use_variables_that_there_are(board: Path) -> None:
    made = json.loads(board.read_text())
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in made["panels"]]
    assert len(places) == len(set(places))
    known = {variable["name"] for variable in made["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]\w*)", board.read_text())) - {"__rate_interval", "__all"}
    assert used == known
    assert made["uid"] == f"ds-serve-{board.stem}"


def test_the_costs_are_what_a_calculation_by_hand_says(tmp_path: Path) -> None:
    filled = {"$job": "ds-serve", "$instance": ".*", "$price": "2.5", "$__rate_interval": "5m"}
    shown = {}
    for panel in json.loads((GRAFANA / "cost.json").read_text())["panels"]:
        (shown[panel["title"]],) = (target["expr"] for target in panel["targets"])
        for name, value in filled.items():
            shown[panel["title"]] = shown[panel["title"]].replace(name, value)
    tests = [
        {
            "expr": f"round({shown[title]}, 0.001)",
            "eval_time": "55m",
            "exp_samples": [{"labels": f"{{{key}}}", "value": cost} for key, cost in costs.items()],
        }
        for title, costs in COSTS.items()
    ]
    file = tmp_path / "costs_test.yaml"
    test = {"interval": "1m", "promql_expr_test": tests}
    test["input_series"] = [{"series": name, "values": values} for name, values in PAID]
    file.write_text(json.dumps({"tests": [test]}))
    promtool("test", "rules", file)


def test_there_is_a_dashboard_for_each_purpose() -> None:
    assert {path.stem for path in BOARDS} == {"overview", "model", "text", "host", "cost"}


def test_prometheus_takes_the_rules_and_the_scrape_configuration() -> None:
    assert f"SUCCESS: {len(RULES)} rules found" in promtool("check", "rules", ALERTS)
    promtool("check", "config", PROMETHEUS / "scrape.yaml")


def test_every_alert_has_a_place_that_says_what_to_do() -> None:
    for rule in RULES:
        page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert anchor in anchors(ROOT / page), rule["alert"]
        assert rule["labels"]["severity"] in ("critical", "warning")


def test_every_alert_fires_and_is_silent_when_it_should(tmp_path: Path) -> None:
    assert {rule["alert"] for rule in RULES} == set(FIRING)
    cases = [(series, [name]) for name, series in FIRING.items()]
    firing_after_an_hour(tmp_path, [*cases, (CALM, [])])
