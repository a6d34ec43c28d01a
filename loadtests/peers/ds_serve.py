"""ds-serve itself, as its command line starts it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from loadtests.peers.base import MAX_BATCH, Launch, Setup
from loadtests.peers.dialects import KSERVE, KServe


class DsServe(KServe):
    key = "ds-serve"
    name = "ds-serve"
    protocols: Sequence[str] = KSERVE
    settings: Mapping[str, float] = {"gateways": 0}
    chosen = "as it comes: two gateways and one engine worker"

    def launch(self, setup: Setup) -> Launch:
        ports = ["--http-port", str(setup.http), "--grpc-port", str(setup.grpc)]
        model = ["--model", f"{setup.work.name}={setup.model}", "--max-batch-size", str(MAX_BATCH)]
        gateways = ["--gateways", f"{setup.settings['gateways']:.0f}"]
        command = [setup.program("ds-serve"), *model, *ports, *gateways, *setup.options]
        return Launch(command)
