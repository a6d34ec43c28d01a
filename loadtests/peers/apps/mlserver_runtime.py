"""MLServer's custom runtime, batched by its adaptive batching."""

# mypy: disable-error-code="import-not-found,import-untyped,misc,untyped-decorator,attr-defined"

from __future__ import annotations

from common import Model
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Runtime(MLModel):
    async def load(self) -> bool:
        self._run = Model()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        rows = NumpyCodec.decode_input(payload.inputs[0])
        output = NumpyCodec.encode_output(self._run.output, self._run(rows))
        return InferenceResponse(model_name=self.name, outputs=[output])
