"""Building engines' own files from ONNX."""
