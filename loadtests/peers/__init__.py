"""ds-serve beside other servers: the same ONNX file, the same client, the same machine."""
