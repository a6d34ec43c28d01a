"""What every peer's server-side script has: the setup that it is told, and the model.

It runs in the peer's environment, so it imports nothing but numpy and ONNX Runtime.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

SETUP: dict[str, Any] = (
    json.loads(Path(os.environ["PEER_SETUP"]).read_text()) if "PEER_SETUP" in os.environ else {}
)
DTYPES = {"FP32": np.float32, "INT64": np.int64}
BYTES = "application/octet-stream"


class Model:
    """The ONNX file with the options that ds-serve's engine uses."""

    def __init__(self, setup: dict[str, Any] = SETUP) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = setup["threads"]
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            setup["model"], options, providers=["CPUExecutionProvider"]
        )
        self.input, self.output = setup["input"], setup["output"]
        self.dtype, self.shape = DTYPES[setup["datatype"]], tuple(setup["shape"])

    def __call__(self, rows: Any) -> Any:
        """[n, ...] to [n, ...]"""
        return self._session.run([self.output], {self.input: rows})[0]

    def row(self, data: Any) -> Any:
        """One row of `shape`, from bytes or from nested lists."""
        if isinstance(data, bytes):
            return np.frombuffer(data, self.dtype).reshape(self.shape)
        return np.array(data, self.dtype)
