"""Triton's Python backend: one execution runs all requests of a batch at once."""

# mypy: disable-error-code="import-not-found,import-untyped,misc,untyped-decorator,attr-defined"

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        given = json.loads(args["model_config"])["parameters"]
        # PYTHONPATH does not reach the backend's process.
        sys.path.insert(0, given["apps"]["string_value"])
        from common import Model

        self._model = Model(json.loads(Path(given["setup"]["string_value"]).read_text()))

    def execute(self, requests: list[Any]) -> list[Any]:
        import numpy as np
        import triton_python_backend_utils as triton

        name = self._model.input
        rows = [triton.get_input_tensor_by_name(each, name).as_numpy() for each in requests]
        outputs = self._model(np.concatenate(rows) if len(rows) > 1 else rows[0])
        answers, start = [], 0
        for part in rows:
            tensor = triton.Tensor(self._model.output, outputs[start : start + len(part)])
            answers.append(triton.InferenceResponse([tensor]))
            start += len(part)
        return answers
