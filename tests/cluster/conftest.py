"""A Ray cluster of two nodes on this machine, and ds-serve in front of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from serving import Server

NODE = {"num_cpus": 2, "object_store_memory": 100 * 2**20}

SETTINGS = {
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
    "RAY_health_check_period_ms": "2000",
    "RAY_health_check_failure_threshold": "10",
    "RAY_agent_register_timeout_ms": "300000",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
}
"""Of Ray's processes: it waits longer for a busy machine, and hears of load sooner."""

NO_RAY = "ray is not installed: pip install 'ds-serve[ray]' into an environment of its own"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    for item in here:
        if "nodes" not in getattr(item, "fixturenames", ()):
            continue
        item.add_marker(pytest.mark.slow)
        item.add_marker(pytest.mark.timeout(900))
        # Ray's own processes and sockets, at which its library only looks when they are collected.
        item.add_marker(pytest.mark.filterwarnings("default"))
        if find_spec("ray") is None:
            item.add_marker(pytest.mark.skip(reason=NO_RAY))


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """`ray.cluster_utils.Cluster` with a head and another node."""
    os.environ.update(SETTINGS)
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    try:
        made.add_node(**NODE)
        yield made
    finally:
        made.shutdown()
        for name in SETTINGS:
            del os.environ[name]


@pytest.fixture(scope="module")
def served(nodes: Any) -> Iterator[Callable[..., Server]]:
    """Starts ds-serve for models on that cluster, told the flags; all end with the module."""
    started: list[Server] = []

    def start(*arguments: str | Path) -> Server:
        server = Server("--cluster", nodes.address, *arguments)
        started.append(server)
        return server.start().wait_ready(400)

    try:
        yield start
    finally:
        for server in started:
            server.close()
