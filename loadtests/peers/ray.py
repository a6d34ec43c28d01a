"""Ray Serve: a Ray of its own on the loopback, with one deployment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from loadtests.peers.base import APPS, Launch, Setup
from loadtests.peers.dialects import Plain

LOOPBACK = {
    # Else Ray takes this machine's address for 127.0.0.1 and listens on all of them.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
}
# What RAY_SERVE_THROUGHPUT_OPTIMIZED=1 sets.
TUNED = {
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
}


class RayServe(Plain):
    key = "ray"
    name = "Ray Serve"
    protocols: Sequence[str] = ("JSON", "bytes")
    settings: Mapping[str, float] = {"workers": 1, "direct": 1}
    chosen = (
        "@serve.batch without waiting, one replica, tuned as by RAY_SERVE_THROUGHPUT_OPTIMIZED; "
        "the client talks to the replica itself (direct ingress), which is many times quicker "
        "than Ray Serve's default proxy (`--set ray.direct=0`)"
    )

    def launch(self, setup: Setup) -> Launch:
        environment = setup.write() | LOOPBACK | TUNED
        if setup.settings["direct"]:
            environment |= {
                "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1",
                "RAY_SERVE_DEFAULT_HTTP_HOST": "127.0.0.1",
                "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(setup.http),
                "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(setup.http + 1),
            }
        return Launch([str(setup.python), str(APPS / "ray_app.py")], environment)
