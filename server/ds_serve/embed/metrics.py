"""What an encoder's worker counts."""

from __future__ import annotations

from ds_serve import metrics
from ds_serve.text import shared_metrics as shared


class EncoderMetrics:
    """One model's metrics. `batch_tokens`: how many tokens it reads at once."""

    def __init__(self, model: str, batch_tokens: int) -> None:
        self._labels = (model, model, shared.ENGINE)
        self._batch_tokens = batch_tokens
        self.load(0, 0, 0)

    def load(self, running: int, waiting: int, tokens: int) -> None:
        """Set the gauges: rows that run, rows that wait, and the tokens of these."""
        shared.running.labels(*self._labels).set(running)
        shared.waiting.labels(*self._labels).set(waiting)
        metrics.load.labels(self._labels[0]).set(min(running, 1) + tokens / self._batch_tokens)

    def ended(self, outcome: str, tokens: int, seconds: float) -> None:
        """Count a request."""
        shared.success.labels(*self._labels, "stop" if outcome == "ok" else "abort").inc()
        shared.whole.labels(*self._labels).observe(seconds)
        if tokens:
            shared.prompt.labels(*self._labels).inc(tokens)
            shared.prompt_sizes.labels(*self._labels).observe(tokens)
