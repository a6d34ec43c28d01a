"""Triton's Python models: a `model.py` that is given whole requests."""
