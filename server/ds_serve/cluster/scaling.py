"""How many replicas a model needs: what Ray Serve's controller asks now and then."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ds_serve.cluster.replica import REQUESTS

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext


def by_requests(context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """So many that each has its share of the requests that wait and run. Requests do not pass
    through Ray, so its own count of them is 0. Bounds and delays are Ray's to keep.
    """
    told = (context.aggregated_metrics or {}).get(REQUESTS, {})
    if not told:
        return float(context.target_num_replicas), {}
    assert context.config is not None, "it autoscales"
    return sum(told.values()) / float(context.config.target_ongoing_requests), {}
