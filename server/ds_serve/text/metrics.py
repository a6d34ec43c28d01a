"""vLLM's metric names, as far as this worker can measure them truthfully.

prometheus_client decides on import, by PROMETHEUS_MULTIPROC_DIR, where the values live.
"""

from __future__ import annotations

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, generate_latest

from ds_engines.openvino_genai import Load
from ds_serve import metrics

_LABELS = ("model_name", "engine")
_ENGINE = "0"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_BETWEEN = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5, 5)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000)

_running = Gauge(
    "vllm:num_requests_running", "Sequences in the batch.", _LABELS, multiprocess_mode="livesum"
)
_waiting = Gauge(
    "vllm:num_requests_waiting",
    "Sequences waiting for a place in the batch.",
    _LABELS,
    multiprocess_mode="livesum",
)
_cache = Gauge(
    "vllm:kv_cache_usage_perc", "KV cache in use; 1 is full.", _LABELS, multiprocess_mode="livemax"
)
_prompt = Counter("vllm:prompt_tokens", "Prompt tokens taken in.", _LABELS)
_generated = Counter("vllm:generation_tokens", "Tokens generated.", _LABELS)
_success = Counter("vllm:request_success", "Requests ended.", (*_LABELS, "finished_reason"))
_first = Histogram(
    "vllm:time_to_first_token_seconds",
    "From arrival to the first token.",
    _LABELS,
    buckets=_SECONDS,
)
_between = Histogram(
    "vllm:inter_token_latency_seconds", "Between two tokens of a choice.", _LABELS, buckets=_BETWEEN
)
_whole = Histogram(
    "vllm:e2e_request_latency_seconds", "From arrival to the end.", _LABELS, buckets=_SECONDS
)
_prompt_sizes = Histogram(
    "vllm:request_prompt_tokens", "Prompt tokens of a request.", _LABELS, buckets=_TOKENS
)
_generated_sizes = Histogram(
    "vllm:request_generation_tokens", "Tokens generated for a request.", _LABELS, buckets=_TOKENS
)


def render() -> bytes:
    """This worker's own metrics as text, also where several processes' are collected elsewhere."""
    return generate_latest(REGISTRY)


class TextMetrics:
    """One model's metrics. `at_once`: how many answers it generates side by side."""

    def __init__(self, model: str, at_once: int) -> None:
        self._labels = (model, _ENGINE)
        self._at_once = at_once
        self.load(Load(0, 0, 0.0), 0)

    def load(self, load: Load, pending: int) -> None:
        """Set the gauges; `pending` answers are wanted, of which the batch holds some."""
        running = min(load.running, pending)
        _running.labels(*self._labels).set(running)
        _waiting.labels(*self._labels).set(pending - running)
        _cache.labels(*self._labels).set(load.cache_used)
        metrics.load.labels(self._labels[0]).set(pending / self._at_once)

    def first_token(self, seconds: float) -> None:
        _first.labels(*self._labels).observe(seconds)

    def between_tokens(self, seconds: float) -> None:
        _between.labels(*self._labels).observe(seconds)

    def ended(self, reasons: list[str], prompt: int, generated: int, seconds: float) -> None:
        """Count a request: `reasons` has one finish reason for each choice."""
        _prompt.labels(*self._labels).inc(prompt)
        _generated.labels(*self._labels).inc(generated)
        for reason in reasons:
            _success.labels(*self._labels, reason).inc()
        _whole.labels(*self._labels).observe(seconds)
        _prompt_sizes.labels(*self._labels).observe(prompt)
        _generated_sizes.labels(*self._labels).observe(generated)
