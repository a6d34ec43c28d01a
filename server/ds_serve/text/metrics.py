"""vLLM's metric names, as far as this worker can measure them truthfully.

prometheus_client decides on import, by PROMETHEUS_MULTIPROC_DIR, where the values live.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from ds_engines.openvino_genai import Load
from ds_serve import metrics
from ds_serve.text import shared_metrics as shared

_BETWEEN = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5, 5)

_cache = Gauge(
    "vllm:kv_cache_usage_perc",
    "KV cache in use; 1 is full.",
    shared.LABELS,
    multiprocess_mode="livemax",
)
_config = Gauge(
    "vllm:cache_config_info",
    "The KV cache: 1, with its size in labels.",
    (*shared.LABELS, "block_size", "num_gpu_blocks"),
    multiprocess_mode="livemax",
)
_generated = Counter("vllm:generation_tokens", "Tokens generated.", shared.LABELS)
_first = Histogram(
    "vllm:time_to_first_token_seconds",
    "From arrival to the first token.",
    shared.LABELS,
    buckets=shared.SECONDS,
)
_between = Histogram(
    "vllm:inter_token_latency_seconds",
    "Between two tokens of a choice.",
    shared.LABELS,
    buckets=_BETWEEN,
)
_generated_sizes = Histogram(
    "vllm:request_generation_tokens",
    "Tokens generated for a request.",
    shared.LABELS,
    buckets=shared.TOKENS,
)


class TextMetrics:
    """One model's metrics. `at_once`: how many answers it generates side by side."""

    def __init__(self, model: str, at_once: int) -> None:
        self._labels = (model, model, shared.ENGINE)
        self._at_once = at_once
        gauges = (shared.running, shared.waiting, _cache)
        self._running, self._waiting, self._cached = (
            metrics.Level(gauge.labels(*self._labels).set) for gauge in gauges
        )
        self._load = metrics.Level(metrics.load.labels(model).set)
        self._between = metrics.Observations(_between.labels(*self._labels))
        self.load(Load(0, 0, 0.0), 0)

    def load(self, load: Load, pending: int) -> None:
        """Set the gauges; `pending` answers are wanted, of which the batch holds some."""
        running = min(load.running, pending)
        self._running.set(running)
        self._waiting.set(pending - running)
        self._cached.set(load.cache_used)
        self._load.set(pending / self._at_once)

    def cache(self, blocks: int, size: int) -> None:
        """The KV cache has so many blocks, of `size` tokens each."""
        _config.labels(*self._labels, str(size), str(blocks)).set(1)

    def first_token(self, seconds: float) -> None:
        _first.labels(*self._labels).observe(seconds)

    def between_tokens(self, seconds: float) -> None:
        self._between.add(seconds)

    def ended(self, reasons: list[str], prompt: int, generated: int, seconds: float) -> None:
        """Count a request: `reasons` has one finish reason for each choice."""
        shared.prompt.labels(*self._labels).inc(prompt)
        _generated.labels(*self._labels).inc(generated)
        for reason in reasons:
            shared.success.labels(*self._labels, reason).inc()
        shared.whole.labels(*self._labels).observe(seconds)
        shared.prompt_sizes.labels(*self._labels).observe(prompt)
        _generated_sizes.labels(*self._labels).observe(generated)
