"""Models in Python, written to a repository's folder as a team that runs Triton has them."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

HEAD = """\
import asyncio
import json
import os
import sys
import threading
import time

import numpy as np
import triton_python_backend_utils as pb_utils


"""

SUM = """\
class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        said = pb_utils.get_output_config_by_name(config, "SUM")
        self.dtype = pb_utils.triton_string_to_numpy(said["data_type"])
        self.calls = []

    def execute(self, requests):
        self.calls.append(len(requests))
        responses = []
        for request in requests:
            a = pb_utils.get_input_tensor_by_name(request, "A").as_numpy()
            b = pb_utils.get_input_tensor_by_name(request, "B").as_numpy()
            a += b
            outputs = [
                pb_utils.Tensor("SUM", a.astype(self.dtype)),
                pb_utils.Tensor("TOGETHER", np.full(a.shape, len(requests), np.int32)),
            ]
            responses.append(pb_utils.InferenceResponse(output_tensors=outputs))
        return responses
"""

SUM_CONFIG = """
backend: "python"
input [
  { name: "A" data_type: TYPE_FP32 dims: [ 4 ] },
  { name: "B" data_type: TYPE_FP32 dims: [ 4 ] }
]
output [
  { name: "SUM" data_type: TYPE_FP32 dims: [ 4 ] },
  { name: "TOGETHER" data_type: TYPE_INT32 dims: [ 4 ] }
]
"""


def put(repository: Path, name: str, code: str, config: str = "", version: int = 1) -> Path:
    """The model's folder, with `code` after the usual imports."""
    folder = repository / name / str(version)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.py").write_text(HEAD + dedent(code))
    if config:
        (repository / name / "config.pbtxt").write_text(config)
    return repository / name


def tensors(*inputs: str, outputs: str, **settings: str) -> str:
    """A config.pbtxt; each tensor is `NAME TYPE dims`, such as `X FP32 -1,4`."""
    said = ['backend: "python"', *(f"{key}: {value}" for key, value in settings.items())]
    said += [f"input {_tensor(text)}" for text in inputs]
    said += [f"output {_tensor(text)}" for text in outputs.split(";")]
    return "\n".join(said) + "\n"


def _tensor(text: str) -> str:
    name, kind, dims = text.split()
    return f'{{ name: "{name}" data_type: TYPE_{kind} dims: [ {dims} ] }}'
