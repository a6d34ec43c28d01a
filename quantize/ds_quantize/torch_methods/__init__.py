"""Handlers of the methods on PyTorch modules."""
