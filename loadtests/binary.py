"""Bodies of KServe's binary tensor extension."""

from __future__ import annotations

import orjson

from ds_client.tensors import encode
from loadtests.scenarios import Arrays

HEADER_LENGTH = "Inference-Header-Content-Length"


def body_of(inputs: Arrays) -> tuple[bytes, int]:
    """A request that sends these inputs as binary data and wants its outputs so, and the length of
    its JSON part, which HEADER_LENGTH announces.
    """
    tensors = {name: encode(name, array) for name, array in inputs.items()}
    described = [
        {
            "name": name,
            "shape": tensor.shape,
            "datatype": tensor.datatype,
            "parameters": {"binary_data_size": len(tensor.data)},
        }
        for name, tensor in tensors.items()
    ]
    head = orjson.dumps({"inputs": described, "parameters": {"binary_data_output": True}})
    return b"".join([head, *(tensor.data for tensor in tensors.values())]), len(head)
