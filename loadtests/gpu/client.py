"""One client process:

python -m loadtests.gpu.client ADDRESS FOLDER ENGINE MODEL BATCH AT_ONCE SECONDS
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

from ds_client import Client
from loadtests.gpu import models


def main() -> None:
    address, folder, engine, model, size, at_once, seconds = sys.argv[1:]
    batch = models.batch(Path(folder), engine, model, int(size))
    with Client(address, shared_memory=True, timeout=60) as client:
        for _ in range(3):
            client.infer(model, batch)
        print("ready", flush=True)
        sys.stdin.readline()
        print(json.dumps({"images_s": _rate(client, model, batch, int(at_once), seconds)}))


def _rate(client: Client, model: str, batch: models.Batch, at_once: int, seconds: str) -> float:
    """Images a second by `at_once` threads, each of which asks again once it has its answer."""
    counts, rows = [0] * at_once, len(next(iter(batch.values())))
    until = time.perf_counter() + float(seconds)

    def work(index: int) -> None:
        while time.perf_counter() < until:
            client.infer(model, batch)
            counts[index] += rows

    began = time.perf_counter()
    threads = [threading.Thread(target=work, args=(at,)) for at in range(at_once)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
