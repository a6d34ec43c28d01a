"""A bare Python process that calls an engine's library directly: what a start cannot undercut.

Run as a file, so that nothing of this repository is imported: alone.py SETUP.json, where the setup
names the kind of engine, the model file, its threads, and a file with one request's tensors. Prints
one JSON object with times on the monotonic clock, then stays, so that its memory can be read.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any


def onnxruntime(setup: dict[str, Any]) -> tuple[float, float]:
    """With the session options of ds-serve's engine."""
    import numpy as np
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = setup["threads"]
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(setup["file"], options, providers=["CPUExecutionProvider"])
    ready = time.monotonic()
    with np.load(setup["request"]) as tensors:
        session.run(None, dict(tensors))
    answered = time.monotonic()
    _keep(session)
    return ready, answered


def openvino(setup: dict[str, Any]) -> tuple[float, float]:
    """With a KV cache of the size and precision of ds-serve's."""
    import openvino_genai as genai  # type: ignore[import-untyped]

    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = setup["cache_gb"]
    scheduler.enable_prefix_caching = True
    properties = {"KV_CACHE_PRECISION": "u8", "INFERENCE_NUM_THREADS": setup["threads"]}
    pipeline = genai.ContinuousBatchingPipeline(setup["file"], scheduler, "CPU", properties)
    ready = time.monotonic()
    config = genai.GenerationConfig()
    config.max_new_tokens = 1
    pipeline.generate([setup["prompt"]], [config])
    answered = time.monotonic()
    _keep(pipeline)
    return ready, answered


ENGINES = {"onnxruntime": onnxruntime, "openvino-genai": openvino}
_kept: list[object] = []


def _keep(model: object) -> None:
    _kept.append(model)


def main() -> None:
    begun = time.monotonic()
    setup = json.loads(Path(sys.argv[1]).read_text())
    ready, answered = ENGINES[setup["engine"]](setup)
    print(json.dumps({"begun": begun, "ready": ready, "answered": answered}), flush=True)
    time.sleep(3600)


if __name__ == "__main__":
    main()
