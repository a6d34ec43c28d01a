"""The four clients of `tritonclient` behind one call, so that one test can be of all of them."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from types import ModuleType
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from serving import Server
from tritonclient.utils import np_to_triton_dtype

Array = np.ndarray[Any, Any]

MODULES: dict[str, tuple[ModuleType, ModuleType]] = {
    "http": (tritonclient.http, tritonclient.http),
    "http-aio": (tritonclient.http.aio, tritonclient.http),
    "grpc": (tritonclient.grpc, tritonclient.grpc),
    "grpc-aio": (tritonclient.grpc.aio, tritonclient.grpc),
}
"""Kind to the module with its client, and the one with its inputs and outputs."""


class Client:
    """One client of `kind`. Coroutines all, whether the client's own calls are or not."""

    def __init__(self, kind: str, client: Any) -> None:
        self.kind = kind
        self.http = kind.startswith("http")
        self._client = client
        self._values = MODULES[kind][1]

    async def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Any method of the client, its answer as plain values of Python."""
        if not self.http and name.startswith("get"):
            options["as_json"] = True
        answer = getattr(self._client, name)(*arguments, **options)
        return await answer if self.kind.endswith("aio") else answer

    async def infer(
        self,
        model: str,
        inputs: dict[str, Array],
        outputs: Sequence[Any] = (),
        binary: bool = True,
        **options: Any,
    ) -> Any:
        """`binary` False: tensors travel as JSON, where the protocol has it."""
        wanted = [
            self.output(each, binary) if isinstance(each, str) else each for each in outputs
        ] or None
        given = [self.input(name, array, binary) for name, array in inputs.items()]
        return await self.call("infer", model, given, outputs=wanted, **options)

    def input(self, name: str, array: Array, binary: bool = True) -> Any:
        made = self._values.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
        options = {"binary_data": binary} if self.http else {}
        return made.set_data_from_numpy(array, **options)

    def output(self, name: str, binary: bool = True, **options: Any) -> Any:
        if self.http:
            options["binary_data"] = binary
        return self._values.InferRequestedOutput(name, **options)

    def about(self, result: Any) -> dict[str, Any]:
        """What an answer says beside its tensors."""
        response = result.get_response()
        if self.http:
            found: dict[str, Any] = response
            return found
        return {
            "model_name": response.model_name,
            "model_version": response.model_version,
            "id": response.id,
            "outputs": [{"name": output.name} for output in response.outputs],
        }


@asynccontextmanager
async def connected(kind: str, server: Server) -> AsyncIterator[Client]:
    address = server.http_address if kind.startswith("http") else server.grpc
    make: Callable[[str], Any] = MODULES[kind][0].InferenceServerClient
    client = make(address)
    try:
        yield Client(kind, client)
    finally:
        if kind.endswith("aio"):
            await client.close()
            gc.collect()  # the HTTP client leaves answers unread: `Unclosed connection`
        else:
            client.close()
