"""What the pipeline promotes, the real server serves; what it does not, it never sees."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from quantizing import Workshop, workshop
from serving import Server

pytestmark = pytest.mark.slow


def accuracy(server: Server, shop: Workshop) -> float:
    data = np.load(shop.folder / "eval.npz")
    rows = {name: data[name][:64] for name in data.files}
    body = {
        "inputs": [
            {
                "name": "x",
                "shape": list(rows["x"].shape),
                "datatype": "FP32",
                "data": rows["x"].ravel().tolist(),
            }
        ]
    }
    answer = server.client.post(f"{server.http}/v2/models/net/infer", json=body)
    assert answer.status_code == 200, answer.text
    output = answer.json()["outputs"][0]
    scores = np.array(output["data"]).reshape(output["shape"])
    return float((scores.argmax(1) == rows["labels"]).mean())


def versions(server: Server) -> list[str]:
    found = server.client.get(f"{server.http}/v2/models/net").json()
    return list(found["versions"])


def test_promoted_versions_are_served_and_failed_ones_never_seen(tmp_path: Path) -> None:
    shop = workshop(tmp_path)
    promoted = shop.run()
    assert promoted.returncode == 0, promoted.stderr
    flags = ("--model-control-mode", "poll", "--repository-poll-secs", "1")
    with Server("--model-repository", shop.models, *flags) as server:
        assert versions(server) == ["1"]
        assert accuracy(server, shop) > 0.9

        bad = shop.recipe("extends: ./int8.yaml\ngate: {max_size: 0.01}")
        assert shop.run(recipe=bad).returncode == 1
        assert shop.run().returncode == 0
        until = time.monotonic() + 30
        while versions(server) != ["2"] and time.monotonic() < until:
            time.sleep(0.2)
        assert versions(server) == ["2"]
        assert accuracy(server, shop) > 0.9
        assert "ERROR" not in server.log()
