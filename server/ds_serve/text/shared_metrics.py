"""vLLM's metric names that every text worker of ours has.

prometheus_client decides on import, by PROMETHEUS_MULTIPROC_DIR, where the values live.
"""

from __future__ import annotations

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, generate_latest

from ds_serve import metrics

LABELS = ("model", "model_name", "engine")
"""`model` as all metrics of this server have it, the others as vLLM has them."""

ENGINE = "0"
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000)

running = Gauge(
    "vllm:num_requests_running", "Sequences in the batch.", LABELS, multiprocess_mode="livesum"
)
waiting = Gauge(
    "vllm:num_requests_waiting",
    "Sequences waiting for a place in the batch.",
    LABELS,
    multiprocess_mode="livesum",
)
prompt = Counter("vllm:prompt_tokens", "Prompt tokens taken in.", LABELS)
success = Counter("vllm:request_success", "Requests ended.", (*LABELS, "finished_reason"))
whole = Histogram(
    "vllm:e2e_request_latency_seconds", "From arrival to the end.", LABELS, buckets=SECONDS
)
prompt_sizes = Histogram(
    "vllm:request_prompt_tokens", "Prompt tokens of a request.", LABELS, buckets=TOKENS
)


def render() -> bytes:
    """This worker's own metrics as text, also where several processes' are collected elsewhere."""
    metrics.tell_all()
    return generate_latest(REGISTRY)
