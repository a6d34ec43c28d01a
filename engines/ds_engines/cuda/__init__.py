"""CUDA as our engines use it, on NVIDIA's own bindings: devices, memory, streams and graphs.

Nothing here is imported before an engine that runs on a GPU is.
"""
