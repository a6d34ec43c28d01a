"""A Ray cluster of two nodes on this machine, and ds-serve in front of it.

They take long to start, so that all tests share them.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from serving import Server

PORTS = (
    "metrics_agent_port",
    "metrics_export_port",
    "runtime_env_agent_port",
    "dashboard_agent_listen_port",
)
"""Of Ray's helpers on each node. A raylet ends where they have not chosen one within 15 seconds,
which they do not on a busy machine; where it is given, it need not wait for most of them.
"""

SETTINGS = {
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
    "RAY_health_check_period_ms": "2000",
    "RAY_health_check_failure_threshold": "10",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
}
"""Of Ray's processes: it waits longer for a busy machine, and hears of load sooner."""

NO_BYTECODE = "PYTHONDONTWRITEBYTECODE"

TRIES = 5

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


def node(**more: Any) -> dict[str, Any]:
    """What a node has."""
    with ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("", 0))) for _ in PORTS]
        ports = [listener.getsockname()[1] for listener in listeners]
    return {
        "num_cpus": 2,
        "object_store_memory": 100 * 2**20,
        # Nobody reads their output here, and each is a process more to start in that time.
        "include_log_monitor": False,
        "no_monitor": True,
        **dict(zip(PORTS, ports, strict=True)),
        **more,
    }


def patiently(attempt: Callable[[], Any]) -> Any:
    """Ray gives a node 30 seconds to begin; a busy machine may need another go."""
    for left in reversed(range(TRIES)):
        try:
            return attempt()
        except Exception:
            if not left:
                raise
    raise AssertionError("the last try returns or raises")


@pytest.fixture(scope="session")
def nodes() -> Iterator[Any]:
    """`ray.cluster_utils.Cluster` with a head and another node."""
    os.environ.update(SETTINGS)
    # Each of Ray's processes imports all of it: what is compiled once is to be kept.
    unkept = os.environ.pop(NO_BYTECODE, None)
    from ray.cluster_utils import Cluster

    made = Cluster()
    try:
        patiently(lambda: made.add_node(**node(), include_dashboard=False))
        patiently(lambda: made.add_node(**node()))
        yield made
    finally:
        made.shutdown()
        for name in SETTINGS:
            del os.environ[name]
        if unkept is not None:
            os.environ[NO_BYTECODE] = unkept


@pytest.fixture(scope="session")
def add_node(nodes: Any) -> Callable[..., Any]:
    """Adds a node, of which more may be said than is usual."""
    return lambda **more: patiently(lambda: nodes.add_node(**node(**more)))


@pytest.fixture(scope="session")
def served(nodes: Any) -> Iterator[Callable[..., Server]]:
    """Starts ds-serve for models on that cluster, told the flags; all end with the session."""
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
