"""BentoML's service: JSON with adaptive batching; bytes as a file, which cannot be batched."""

# mypy: disable-error-code="import-not-found,import-untyped,misc,untyped-decorator,attr-defined"

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import bentoml
import numpy as np
from bentoml.validators import ContentType
from common import BYTES, DTYPES, SETUP, Model
from numpy.typing import NDArray

Rows: Any = NDArray[DTYPES[SETUP["datatype"]]]


@bentoml.service(
    workers=SETUP["workers"],
    traffic={"timeout": 60},
    logging={"access": {"enabled": False}},
    metrics={"enabled": False},
)
class Predictor:
    def __init__(self) -> None:
        self._model = Model()

    @bentoml.api(batchable=True, max_batch_size=SETUP["max_batch"])
    def predict(self, x: Rows) -> NDArray[np.float32]:
        output: NDArray[np.float32] = self._model(x)
        return output

    @bentoml.api
    def predict_file(
        self, x: Annotated[Path, ContentType(BYTES)], /
    ) -> Annotated[bytes, ContentType(BYTES)]:
        output: bytes = self._model(self._model.row(x.read_bytes())[None]).tobytes()
        return output
