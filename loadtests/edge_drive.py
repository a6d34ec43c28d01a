"""What runs inside a host's network: requests to the server there, and how each was answered.

`python -m loadtests.edge_drive load URL MODEL IMAGES.npy` asks for one image after the other on
each connection, for `--seconds` or `--requests` on each, and prints one line of JSON for each
request. `… get URL` prints what is there.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import threading
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import numpy as np

TIMEOUT = 60.0


class Answer(msgspec.Struct):
    """One request. Times in seconds since 1970, and of it; `status` 0: there was no answer.
    `image`: its number, and `chosen` what it was taken for.
    """

    begun: float
    took: float
    status: int
    image: int = -1
    chosen: int = -1
    tier: int = 0
    degraded: bool = False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("get").add_argument("url")
    load = commands.add_parser("load")
    load.add_argument("url")
    load.add_argument("model")
    load.add_argument("images", type=Path)
    load.add_argument("--connections", type=int, default=4)
    load.add_argument("--seconds", type=float, default=0.0)
    load.add_argument("--requests", type=int, default=100, help="of each connection")
    load.add_argument("--pause", type=float, default=0.0, help="seconds between two of them")
    given = parser.parse_args()
    if given.command == "get":
        with urllib.request.urlopen(given.url, timeout=10) as answer:
            sys.stdout.write(answer.read().decode())
        return
    images = np.load(given.images)
    lock = threading.Lock()

    def run(number: int) -> None:
        for answer in asked(given, images, number):
            with lock:
                print(msgspec.json.encode(answer).decode(), flush=True)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(given.connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def asked(given: argparse.Namespace, images: np.ndarray, number: int):  # type: ignore[type-arg]
    """The answers on one connection."""
    connection = http.client.HTTPConnection(urlsplit(given.url).netloc, timeout=TIMEOUT)
    path = f"/v2/models/{given.model}/infer"
    until = time.monotonic() + given.seconds
    turn = 0
    while time.monotonic() < until if given.seconds else turn < given.requests:
        image = (turn * given.connections + number) % len(images)
        yield ask(connection, path, images[image : image + 1], image)
        turn += 1
        time.sleep(given.pause)
    connection.close()


def ask(connection: http.client.HTTPConnection, path: str, image: np.ndarray, index: int) -> Answer:
    """Send one image; where there is no answer, that is the answer."""
    data = image.tobytes()
    tensor = {"name": "image", "datatype": "FP32", "shape": image.shape}
    tensor["parameters"] = {"binary_data_size": len(data)}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    begun, clock = time.time(), time.perf_counter()
    try:
        connection.request("POST", path, head + data, headers)
        reply = connection.getresponse()
        body = reply.read()
    except (OSError, http.client.HTTPException):
        connection.close()
        return Answer(begun, time.perf_counter() - clock, 0, index)
    took = time.perf_counter() - clock
    if reply.status != 200:
        return Answer(begun, took, reply.status, index)
    scores = np.frombuffer(body[int(reply.headers["inference-header-content-length"]) :], "<f4")
    return Answer(
        begun,
        took,
        reply.status,
        index,
        int(scores.argmax()),
        int(reply.headers.get("x-ds-tier", 0)),
        reply.headers.get("x-ds-degraded") == "true",
    )


if __name__ == "__main__":
    main()
