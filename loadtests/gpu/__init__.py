"""Tensor engines on a GPU, beside what they are made of: the same plan bare, and PyTorch."""
