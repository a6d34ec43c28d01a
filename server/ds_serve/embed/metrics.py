"""vLLM's metric names, as far as an encoder has them.

prometheus_client decides on import, by PROMETHEUS_MULTIPROC_DIR, where the values live.
"""

from __future__ import annotations

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, generate_latest

from ds_serve import metrics

_LABELS = ("model_name", "engine")
_ENGINE = "0"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
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
_prompt = Counter("vllm:prompt_tokens", "Prompt tokens taken in.", _LABELS)
_success = Counter("vllm:request_success", "Requests ended.", (*_LABELS, "finished_reason"))
_whole = Histogram(
    "vllm:e2e_request_latency_seconds", "From arrival to the end.", _LABELS, buckets=_SECONDS
)
_prompt_sizes = Histogram(
    "vllm:request_prompt_tokens", "Prompt tokens of a request.", _LABELS, buckets=_TOKENS
)


def render() -> bytes:
    """This worker's own metrics as text, also where several processes' are collected elsewhere."""
    return generate_latest(REGISTRY)


class EncoderMetrics:
    """One model's metrics. `batch_tokens`: how many tokens it reads at once."""

    def __init__(self, model: str, batch_tokens: int) -> None:
        self._labels = (model, _ENGINE)
        self._batch_tokens = batch_tokens
        self.load(0, 0, 0)

    def load(self, running: int, waiting: int, tokens: int) -> None:
        """Set the gauges: rows that run, rows that wait, and the tokens of these."""
        _running.labels(*self._labels).set(running)
        _waiting.labels(*self._labels).set(waiting)
        metrics.load.labels(self._labels[0]).set(min(running, 1) + tokens / self._batch_tokens)

    def ended(self, outcome: str, tokens: int, seconds: float) -> None:
        """Count a request."""
        _success.labels(*self._labels, "stop" if outcome == "ok" else "abort").inc()
        _whole.labels(*self._labels).observe(seconds)
        if tokens:
            _prompt.labels(*self._labels).inc(tokens)
            _prompt_sizes.labels(*self._labels).observe(tokens)
