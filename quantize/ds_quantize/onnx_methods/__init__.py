"""What the methods on ONNX files do; imports onnx and onnxruntime."""
