"""The defects on a photograph of a board: `python client.py board.jpg [HOST:PORT]`."""

import sys
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton

NAMES = ("missing component", "scratch", "solder bridge", "spurious copper", "hole")

jpeg = np.array([Path(sys.argv[1]).read_bytes()], np.object_)
given = triton.InferInput("jpeg", jpeg.shape, "BYTES")
given.set_data_from_numpy(jpeg)
with triton.InferenceServerClient(*(sys.argv[2:] or ["localhost:8001"])) as client:
    answer = client.infer("inspection", [given])
found = (answer.as_numpy(name).tolist() for name in ("boxes", "scores", "classes"))
for box, score, number in zip(*found, strict=True):
    print(f"{NAMES[number]:18} {score:.2f}  {[round(side) for side in box]}")
