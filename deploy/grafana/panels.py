"""What the dashboards show."""

from __future__ import annotations

from typing import NamedTuple

from queries import MODEL, SERVERS, TEXT, Query, now, or_none, quantiles, rate


class Panel(NamedTuple):
    """A diagram. `unit` and `kind` are Grafana's names."""

    title: str
    queries: list[Query]
    unit: str = "short"
    about: str = ""
    kind: str = "timeseries"


ANSWERS = "ds_gateway_responses_total"
REFUSED = f'{SERVERS},code=~"429|RESOURCE_EXHAUSTED"'
FAILED = f'{SERVERS},code=~"5..|UNAVAILABLE|INTERNAL|DEADLINE_EXCEEDED|UNKNOWN"'
TENSORS = "nv_inference_request_success"
ROWS = rate("nv_inference_count", MODEL, "model")
HITS = rate("nv_cache_num_hits_per_model", MODEL, "model")
MISSES = rate("nv_cache_num_misses_per_model", MODEL, "model")
ENGINE = "ds_engine_seconds_total"
"""Once for each batch: Triton's durations count it for every request in the batch."""

CHATS = "vllm:request_success_total"
TOKENS = "vllm:generation_tokens_total"

UP = Query(f"count(up{{{SERVERS}}} == 1)")
ALL_DONE = Query(f"({or_none(rate(TENSORS, SERVERS)).text} + {or_none(rate(CHATS, SERVERS)).text})")
ERRORS = rate(ANSWERS, SERVERS)


def mean(part: str) -> Query:
    """Of one part of a request's way, in seconds."""
    took = rate(f"nv_inference_{part}_duration_us", MODEL)
    return took.over(rate(TENSORS, MODEL), " / 1e6").called(part.replace("_", " "))


def per_million(done: Query, share: str = "") -> Query:
    """What a million costs at the present rate, at $price an hour for each server that is up."""
    return Query(f"$price * scalar({UP.text}) / 3600{share} / {done.text} * 1e6", done.legend)


OVERVIEW = [
    Panel("Servers that answer", [UP], kind="stat"),
    Panel(
        "Models that are ready",
        [
            Query(f"sum(ds_model_ready{{{SERVERS}}})", "ready"),
            Query(f"count(ds_model_ready{{{SERVERS}}})", "all"),
        ],
        kind="stat",
    ),
    Panel(
        "Load",
        [now("ds_load", SERVERS, "model", "max")],
        "percentunit",
        "Requests that wait or run over those that can run at once. Above 1 some wait.",
    ),
    Panel("Answers a second", [rate(ANSWERS, SERVERS, "protocol")], "reqps"),
    Panel(
        "Errors",
        [
            or_none(rate(ANSWERS, FAILED)).over(ERRORS).called("failed"),
            or_none(rate(ANSWERS, REFUSED)).over(ERRORS).called("refused"),
        ],
        "percentunit",
        "Of all answers, over HTTP and gRPC.",
    ),
    Panel("Answers by status", [rate(ANSWERS, SERVERS, "protocol, code")], "reqps"),
    Panel("Requests in hand", [now("ds_gateway_in_flight_requests", SERVERS, "protocol")]),
    Panel(
        "Workers started again in a minute",
        [
            Query(
                f"60 * {rate('ds_worker_restarts_total', SERVERS, 'model').text}",
                "{{model}}",
            )
        ],
    ),
    Panel("Models by server", [now("ds_model_ready", SERVERS).called("{{model}} {{version}}")]),
]

TENSOR = [
    Panel("Answers a second", [rate(TENSORS, MODEL, "model, version")], "reqps"),
    Panel("Rows a second", [ROWS], "ops"),
    Panel(
        "Failures a second", [rate("nv_inference_request_failure", MODEL, "model, reason")], "reqps"
    ),
    Panel("Latency", quantiles("ds_request_seconds", MODEL, "model", 0.5, 0.95, 0.99), "s"),
    Panel("Time in the queue", quantiles("ds_queue_seconds", MODEL, "model", 0.5, 0.99), "s"),
    Panel(
        "Where the time goes",
        [mean(part) for part in ("queue", "compute_input", "compute_infer", "compute_output")],
        "s",
        "Means of one request.",
    ),
    Panel(
        "Rows in a batch",
        [ROWS.over(rate("nv_inference_exec_count", MODEL, "model"))],
        about="1 where batching joins nothing.",
    ),
    Panel("Requests that wait", [now("nv_inference_pending_request_count", MODEL, "model")]),
    Panel("Load", [now("ds_load", MODEL, "model", "max")], "percentunit"),
    Panel(
        "First answer",
        quantiles("nv_inference_first_response_histogram_ms", MODEL, "model", 0.5, 0.99),
        "ms",
    ),
    Panel(
        "Time to load", [now("nv_model_load_duration_secs", MODEL, "model, version", "max")], "s"
    ),
    Panel(
        "Answers from the cache",
        [HITS.over(Query(f"({HITS.text} + {MISSES.text})"))],
        "percentunit",
        "Of models that enable response_cache.",
    ),
]

CHAT = [
    Panel(
        "Tokens a second",
        [
            rate(TOKENS, TEXT, "model_name").called("written"),
            rate("vllm:prompt_tokens_total", TEXT, "model_name").called("read"),
        ],
    ),
    Panel("Answers a second", [rate(CHATS, TEXT, "model_name, finished_reason")], "reqps"),
    Panel(
        "In the batch, and waiting for it",
        [
            now("vllm:num_requests_running", TEXT, "model_name").called("running"),
            now("vllm:num_requests_waiting", TEXT, "model_name").called("waiting"),
        ],
    ),
    *(
        Panel(title, quantiles(f"vllm:{metric}", TEXT, "model_name", 0.5, 0.95), unit)
        for title, metric, unit in (
            ("Time to the first token", "time_to_first_token_seconds", "s"),
            ("Time between tokens", "inter_token_latency_seconds", "s"),
            ("Time to the end", "e2e_request_latency_seconds", "s"),
            ("Tokens of prompts", "request_prompt_tokens", "short"),
            ("Tokens of answers", "request_generation_tokens", "short"),
        )
    ),
    Panel(
        "KV cache in use",
        [now("vllm:kv_cache_usage_perc", TEXT, "model_name", "max")],
        "percentunit",
    ),
    Panel(
        "Tokens in flight",
        [now("ds_text_tokens_in_flight", MODEL, "model")],
        about="Estimated at admission.",
    ),
    Panel("Waiting in the gateways", [now("ds_text_waiting_requests", MODEL, "model")]),
    Panel(
        "Refused, answered by others, sent again",
        [
            rate("ds_text_refused_total", MODEL, "model").called("refused"),
            rate("ds_text_stand_ins_total", MODEL, "model, by").called("answered for it"),
            rate("ds_upstream_retries_total", MODEL, "model").called("sent again"),
        ],
        "reqps",
    ),
    Panel(
        "Other servers' answers", [rate("ds_upstream_answers_total", MODEL, "model, code")], "reqps"
    ),
    Panel(
        "Other servers left alone",
        [now("ds_upstream_breaker", MODEL, "model", "max")],
        about="0 asked, 1 on trial, 2 left alone.",
    ),
]

MEMORY_USED = now("nv_cpu_memory_used_bytes", SERVERS)
MEMORY = now("nv_cpu_memory_total_bytes", SERVERS)

HOST = [
    Panel("Processors in use", [now("nv_cpu_utilization", SERVERS)], "percentunit"),
    Panel("Memory in use", [MEMORY_USED, MEMORY.called("all")], "bytes"),
    Panel("Memory in use, of all", [MEMORY_USED.over(MEMORY)], "percentunit"),
    Panel(
        "GPUs in use", [now("nv_gpu_utilization", SERVERS).called("{{gpu_uuid}}")], "percentunit"
    ),
    Panel(
        "GPU memory in use",
        [
            now("nv_gpu_memory_used_bytes", SERVERS).called("{{gpu_uuid}}"),
            now("nv_gpu_memory_total_bytes", SERVERS).called("{{gpu_uuid}} all"),
        ],
        "bytes",
    ),
    Panel(
        "Power of the GPUs",
        [
            now("nv_gpu_power_usage", SERVERS).called("{{gpu_uuid}}"),
            now("nv_gpu_power_limit", SERVERS).called("{{gpu_uuid}} limit"),
        ],
        "watt",
    ),
    Panel(
        "Energy for a million answers",
        [rate("nv_energy_consumption", SERVERS).over(ALL_DONE, " * 1e6")],
        "joule",
        "Of the GPUs alone.",
    ),
]

WHOLE = "At the present rate, as if the servers did nothing else."

COST = [
    Panel(
        "Cost an hour",
        [Query(f"$price * {UP.text}")],
        "currencyUSD",
        "What $price says, for each server.",
        "stat",
    ),
    Panel(
        "Cost of a million tensor requests",
        [per_million(rate(TENSORS, SERVERS))],
        "currencyUSD",
        f"{WHOLE} Each step of an ensemble is a request.",
        "stat",
    ),
    Panel(
        "Cost of a million tokens written",
        [per_million(rate(TOKENS, SERVERS))],
        "currencyUSD",
        WHOLE,
        "stat",
    ),
    Panel("Cost of a million answers", [per_million(ALL_DONE)], "currencyUSD"),
    Panel(
        "Cost of a million requests, by model",
        [
            per_million(
                rate(TENSORS, SERVERS, "model"),
                f" * {rate(ENGINE, SERVERS, 'model').text} / scalar({rate(ENGINE, SERVERS).text})",
            )
        ],
        "currencyUSD",
        "The servers' price, shared out among tensor models by their time in the engine. An "
        "ensemble's is in its members.",
    ),
    Panel(
        "Cost of a million tokens written, by model",
        [per_million(rate(TOKENS, SERVERS, "model_name"))],
        "currencyUSD",
        WHOLE,
    ),
    Panel(
        "Load that is paid for",
        [Query(f"avg(max by (instance) (ds_load{{{SERVERS}}}))")],
        "percentunit",
        "Where it stays low, fewer servers would do.",
    ),
]
