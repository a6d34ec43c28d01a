"""Writes the Grafana dashboards beside this file; `--check` tells whether they are up to date."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parent
WIDTH, HEIGHT, COLUMNS = 8, 7, 3

FILTER = 'job=~"$job",instance=~"$instance"'
MODEL = f'{FILTER},model=~"$model"'
TEXT = f'{FILTER},model_name=~"$model"'
REFUSED = f'{FILTER},code=~"429|RESOURCE_EXHAUSTED"'
FAILED = f'{FILTER},code=~"5..|UNAVAILABLE|INTERNAL|DEADLINE_EXCEEDED|UNKNOWN"'

Json = dict[str, Any]


class Panel(NamedTuple):
    """A diagram: its queries, each with what its lines are called. `kind` is Grafana's."""

    title: str
    queries: list[tuple[str, str]]
    unit: str = "short"
    about: str = ""
    kind: str = "timeseries"


def rate(metric: str, where: str, by: str = "") -> str:
    grouped = f"sum by ({by}) " if by else "sum"
    return f"{grouped}(rate({metric}{{{where}}}[$__rate_interval]))"


def quantiles(metric: str, where: str, by: str, *parts: float) -> list[tuple[str, str]]:
    """One query for each part; 0.5 is the median."""
    inner = rate(f"{metric}_bucket", where, f"{by}, le")
    return [
        (f"histogram_quantile({part}, {inner})", f"{{{{{by}}}}} p{part * 100:g}") for part in parts
    ]


def mean_us(name: str) -> tuple[str, str]:
    """Of one part of a request's way, in seconds."""
    took = rate(f"nv_inference_{name}_duration_us", MODEL)
    return f"{took} / {rate('nv_inference_request_success', MODEL)} / 1e6", name.replace("_", " ")


UP = f"count(up{{{FILTER}}} == 1)"
ANSWERS = "ds_gateway_responses_total"
TENSORS = "nv_inference_request_success"
TOKENS = "vllm:generation_tokens_total"
CHATS = "vllm:request_success_total"
ALL_DONE = f"(({rate(TENSORS, FILTER)} or vector(0)) + ({rate(CHATS, FILTER)} or vector(0)))"
RESTARTS = "ds_worker_restarts_total"
ROWS = rate("nv_inference_count", MODEL, "model")
HITS = rate("nv_cache_num_hits_per_model", MODEL, "model")
MISSES = rate("nv_cache_num_misses_per_model", MODEL, "model")
ENGINE_US = "nv_inference_compute_infer_duration_us"


def per_million(rate_: str) -> str:
    """What a million costs at the present rate, at $price an hour for each server that is up."""
    return f"$price * {UP} / 3600 / {rate_} * 1e6"


OVERVIEW = [
    Panel("Servers that answer", [(UP, "")], kind="stat"),
    Panel(
        "Models that are ready",
        [
            (f"sum(ds_model_ready{{{FILTER}}})", "ready"),
            (f"count(ds_model_ready{{{FILTER}}})", "all"),
        ],
        kind="stat",
    ),
    Panel(
        "Load",
        [(f"max by (model) (ds_load{{{FILTER}}})", "{{model}}")],
        "percentunit",
        "Requests that wait or run over those that can run at once. Above 1 some wait.",
    ),
    Panel("Answers a second", [(rate(ANSWERS, FILTER, "protocol"), "{{protocol}}")], "reqps"),
    Panel(
        "Errors",
        [
            (f"({rate(ANSWERS, FAILED)} or vector(0)) / {rate(ANSWERS, FILTER)}", "failed"),
            (f"({rate(ANSWERS, REFUSED)} or vector(0)) / {rate(ANSWERS, FILTER)}", "refused"),
        ],
        "percentunit",
        "Of all answers, over HTTP and gRPC.",
    ),
    Panel(
        "Answers by status",
        [(rate(ANSWERS, FILTER, "protocol, code"), "{{protocol}} {{code}}")],
        "reqps",
    ),
    Panel(
        "Requests in hand",
        [(f"sum by (protocol) (ds_gateway_in_flight_requests{{{FILTER}}})", "{{protocol}}")],
    ),
    Panel(
        "Workers started again",
        [
            (
                f"sum by (model) (increase({RESTARTS}{{{FILTER}}}[$__rate_interval]))",
                "{{model}}",
            )
        ],
    ),
    Panel(
        "Models by server", [(f"ds_model_ready{{{FILTER}}}", "{{instance}} {{model}} {{version}}")]
    ),
]

TENSOR = [
    Panel(
        "Answers a second",
        [(rate(TENSORS, MODEL, "model, version"), "{{model}} {{version}}")],
        "reqps",
    ),
    Panel("Rows a second", [(ROWS, "{{model}}")], "ops"),
    Panel(
        "Failures a second",
        [(rate("nv_inference_request_failure", MODEL, "model, reason"), "{{model}} {{reason}}")],
        "reqps",
    ),
    Panel("Latency", quantiles("ds_request_seconds", MODEL, "model", 0.5, 0.95, 0.99), "s"),
    Panel("Time in the queue", quantiles("ds_queue_seconds", MODEL, "model", 0.5, 0.99), "s"),
    Panel(
        "Where the time goes",
        [mean_us(name) for name in ("queue", "compute_input", "compute_infer", "compute_output")],
        "s",
        "Means of one request.",
    ),
    Panel(
        "Rows in a batch",
        [
            (
                f"{ROWS} / {rate('nv_inference_exec_count', MODEL, 'model')}",
                "{{model}}",
            )
        ],
        about="1 where batching joins nothing.",
    ),
    Panel(
        "Requests that wait",
        [(f"sum by (model) (nv_inference_pending_request_count{{{MODEL}}})", "{{model}}")],
    ),
    Panel("Load", [(f"max by (model) (ds_load{{{MODEL}}})", "{{model}}")], "percentunit"),
    Panel(
        "First answer",
        quantiles("nv_inference_first_response_histogram_ms", MODEL, "model", 0.5, 0.99),
        "ms",
    ),
    Panel(
        "Time to load", [(f"nv_model_load_duration_secs{{{MODEL}}}", "{{model}} {{version}}")], "s"
    ),
    Panel(
        "Answers from the cache",
        [
            (
                f"{HITS} / ({HITS} + {MISSES})",
                "{{model}}",
            )
        ],
        "percentunit",
        "Of models that enable response_cache.",
    ),
]

CHAT = [
    Panel(
        "Tokens a second",
        [
            (rate(TOKENS, TEXT, "model_name"), "{{model_name}} written"),
            (rate("vllm:prompt_tokens_total", TEXT, "model_name"), "{{model_name}} read"),
        ],
    ),
    Panel(
        "Answers a second",
        [(rate(CHATS, TEXT, "model_name, finished_reason"), "{{model_name}} {{finished_reason}}")],
        "reqps",
    ),
    Panel(
        "In the batch, and waiting for it",
        [
            (
                f"sum by (model_name) (vllm:num_requests_running{{{TEXT}}})",
                "{{model_name}} running",
            ),
            (
                f"sum by (model_name) (vllm:num_requests_waiting{{{TEXT}}})",
                "{{model_name}} waiting",
            ),
        ],
    ),
    Panel(
        "Time to the first token",
        quantiles("vllm:time_to_first_token_seconds", TEXT, "model_name", 0.5, 0.95),
        "s",
    ),
    Panel(
        "Time between tokens",
        quantiles("vllm:inter_token_latency_seconds", TEXT, "model_name", 0.5, 0.95),
        "s",
    ),
    Panel(
        "Time to the end",
        quantiles("vllm:e2e_request_latency_seconds", TEXT, "model_name", 0.5, 0.95),
        "s",
    ),
    Panel(
        "KV cache in use",
        [(f"max by (model_name) (vllm:kv_cache_usage_perc{{{TEXT}}})", "{{model_name}}")],
        "percentunit",
    ),
    Panel(
        "Tokens of prompts", quantiles("vllm:request_prompt_tokens", TEXT, "model_name", 0.5, 0.95)
    ),
    Panel(
        "Tokens of answers",
        quantiles("vllm:request_generation_tokens", TEXT, "model_name", 0.5, 0.95),
    ),
    Panel(
        "Tokens in flight",
        [(f"sum by (model) (ds_text_tokens_in_flight{{{MODEL}}})", "{{model}}")],
        about="Estimated at admission.",
    ),
    Panel(
        "Waiting in the gateways",
        [(f"sum by (model) (ds_text_waiting_requests{{{MODEL}}})", "{{model}}")],
    ),
    Panel(
        "Refused, answered by others, sent again",
        [
            (rate("ds_text_refused_total", MODEL, "model"), "{{model}} refused"),
            (rate("ds_text_stand_ins_total", MODEL, "model, by"), "{{model}} answered by {{by}}"),
            (rate("ds_upstream_retries_total", MODEL, "model"), "{{model}} sent again"),
        ],
        "reqps",
    ),
    Panel(
        "Other servers' answers",
        [(rate("ds_upstream_answers_total", MODEL, "model, code"), "{{model}} {{code}}")],
        "reqps",
    ),
    Panel(
        "Other servers left alone",
        [(f"max by (model) (ds_upstream_breaker{{{MODEL}}})", "{{model}}")],
        about="0 asked, 1 on trial, 2 left alone.",
    ),
]

HOST = [
    Panel(
        "Processors in use", [(f"nv_cpu_utilization{{{FILTER}}}", "{{instance}}")], "percentunit"
    ),
    Panel(
        "Memory in use",
        [
            (f"nv_cpu_memory_used_bytes{{{FILTER}}}", "{{instance}}"),
            (f"nv_cpu_memory_total_bytes{{{FILTER}}}", "{{instance}} all"),
        ],
        "bytes",
    ),
    Panel(
        "Memory in use, of all",
        [
            (
                f"nv_cpu_memory_used_bytes{{{FILTER}}} / nv_cpu_memory_total_bytes{{{FILTER}}}",
                "{{instance}}",
            )
        ],
        "percentunit",
    ),
    Panel(
        "GPUs in use",
        [(f"nv_gpu_utilization{{{FILTER}}}", "{{instance}} {{gpu_uuid}}")],
        "percentunit",
    ),
    Panel(
        "GPU memory in use",
        [
            (f"nv_gpu_memory_used_bytes{{{FILTER}}}", "{{gpu_uuid}}"),
            (f"nv_gpu_memory_total_bytes{{{FILTER}}}", "{{gpu_uuid}} all"),
        ],
        "bytes",
    ),
    Panel(
        "Power of the GPUs",
        [
            (f"nv_gpu_power_usage{{{FILTER}}}", "{{gpu_uuid}}"),
            (f"nv_gpu_power_limit{{{FILTER}}}", "{{gpu_uuid}} limit"),
        ],
        "watt",
    ),
    Panel(
        "Energy for a million answers",
        [(f"{rate('nv_energy_consumption', FILTER)} / {ALL_DONE} * 1e6", "")],
        "joule",
    ),
]

COST = [
    Panel(
        "Cost an hour",
        [(f"$price * {UP}", "")],
        "currencyUSD",
        "What $price says, for each server.",
        "stat",
    ),
    Panel(
        "Cost of a million tensor requests",
        [(per_million(rate(TENSORS, FILTER)), "")],
        "currencyUSD",
        "At the present rate, if the servers did nothing else.",
        "stat",
    ),
    Panel(
        "Cost of a million tokens",
        [(per_million(rate(TOKENS, FILTER)), "")],
        "currencyUSD",
        "Written, at the present rate, if the servers did nothing else.",
        "stat",
    ),
    Panel("Cost of a million answers", [(per_million(ALL_DONE), "")], "currencyUSD"),
    Panel(
        "Cost of a million requests, by model",
        [
            (
                f"$price * scalar({UP}) / 3600 / scalar({rate(ENGINE_US, FILTER)})"
                f" * {rate(ENGINE_US, FILTER, 'model')} / {rate(TENSORS, FILTER, 'model')} * 1e6",
                "{{model}}",
            )
        ],
        "currencyUSD",
        "The servers' price, shared out among tensor models by their time in the engine.",
    ),
    Panel(
        "Cost of a million tokens, by model",
        [
            (
                f"$price * scalar({UP}) / 3600 / {rate(TOKENS, FILTER, 'model_name')} * 1e6",
                "{{model_name}}",
            )
        ],
        "currencyUSD",
        "Written, as if the servers did nothing else.",
    ),
    Panel(
        "Load that is paid for",
        [(f"avg(max by (instance) (ds_load{{{FILTER}}}))", "")],
        "percentunit",
        "Where it stays low, fewer servers would do.",
    ),
]

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
        yield _choice("model", f"label_values(ds_model_ready{{{FILTER}}}, model)")
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
            {"refId": chr(ord("A") + place), "expr": query, "legendFormat": legend}
            for place, (query, legend) in enumerate(panel.queries)
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
