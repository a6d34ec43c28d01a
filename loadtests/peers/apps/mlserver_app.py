"""MLServer's own command, whose gRPC server answers two calls more.

NVIDIA's load generator asks for a model's configuration and statistics, which are no part of the
protocol that MLServer speaks. Requests for inference go their usual way.
"""

# mypy: disable-error-code="import-not-found,import-untyped,misc,untyped-decorator,attr-defined"

from __future__ import annotations

import base64
from typing import Any

import grpc
from common import SETUP
from grpc import aio
from mlserver.cli import main

ANSWERS = {
    f"/inference.GRPCInferenceService/{method}": base64.b64decode(message)
    for method, message in SETUP["answers"].items()
}


class Answers(grpc.GenericRpcHandler):
    def service(self, details: grpc.HandlerCallDetails) -> Any:
        if details.method not in ANSWERS:
            return None

        async def answer(request: bytes, context: object) -> bytes:
            return ANSWERS[details.method]

        return grpc.unary_unary_rpc_method_handler(answer)


ordinary = aio.server


def server(*args: Any, **options: Any) -> aio.Server:
    made = ordinary(*args, **options)
    made.add_generic_rpc_handlers((Answers(),))
    return made


if __name__ == "__main__":
    aio.server = server
    main()
