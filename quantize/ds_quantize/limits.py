"""The limits that decide whether a result is good enough."""

from __future__ import annotations

from typing import Annotated

import msgspec

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Cosine = Annotated[float, msgspec.Meta(ge=-1, le=1)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]
Positive = Annotated[float, msgspec.Meta(gt=0)]


class Gate(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the candidate must keep; a limit that is None is not judged.

    `max_accuracy_drop` is absolute, in the metric's own unit (0.01: from 0.95 to 0.94 passes), and
    `max_perplexity_increase` relative (0.05: from 20 to 21 passes). `min_agreement` is the share
    of rows that both models answer alike, `min_cosine` the mean cosine of their outputs,
    `min_speedup` the baseline's latency divided by the candidate's, `max_size` the candidate's
    bytes divided by the baseline's, `max_latency_ms` the candidate's for one row.
    """

    max_accuracy_drop: NotNegative | None = None
    min_accuracy: float | None = None
    min_agreement: Share | None = None
    min_cosine: Cosine | None = None
    min_speedup: Positive | None = None
    max_size: Positive | None = None
    max_latency_ms: Positive | None = None
    max_perplexity_increase: NotNegative | None = None
