"""LitServe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from loadtests.peers.base import APPS, Array, Launch, Request, Setup
from loadtests.peers.dialects import Plain
from loadtests.peers.workloads import Workload

BOUNDARY = "3c1f9b0e5a"


class LitServe(Plain):
    key = "litserve"
    name = "LitServe"
    protocols: Sequence[str] = ("JSON", "bytes")
    settings: Mapping[str, float] = {"workers": 1, "api_servers": 2, "batch_seconds": 0.001}
    chosen = (
        "batches within 1 ms, its ZeroMQ queue (`fast_queue`), one worker and two API servers; "
        "bytes come as an upload, since its scripts see parsed JSON or a form"
    )

    def launch(self, setup: Setup) -> Launch:
        return Launch([str(setup.python), str(APPS / "litserve_app.py")], setup.write())

    def request(self, work: Workload, protocol: str, row: Array) -> Request:
        if protocol == "JSON":
            return super().request(work, protocol, row)
        disposition = f'form-data; name="{work.input}"; filename="row"'
        head = f"--{BOUNDARY}\r\nContent-Disposition: {disposition}\r\n\r\n".encode()
        body = head + row.tobytes() + f"\r\n--{BOUNDARY}--\r\n".encode()
        kind = f"multipart/form-data; boundary={BOUNDARY}"
        return Request("/predict", body, {"Content-Type": kind})
