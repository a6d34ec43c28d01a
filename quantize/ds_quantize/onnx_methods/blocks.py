"""INT4 for blocks of weights: rounding to nearest, HQQ and GPTQ.

ONNX Runtime's GPTQ rounds its result a second time, to scales of its own, and was measured to be
worse than rounding to nearest (12 against 16 dB); its HQQ needs PyTorch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ds_engines.base import Array

HIGHEST = 15
MIDDLE = 8
DAMPING = 0.01


@dataclass(frozen=True)
class Blocks:
    """A matrix of `rows` inputs and as many columns as outputs.

    `levels`: uint8[blocks, block size, columns], 0 to 15. `scales`, `zeros`: float[blocks,
    columns]; a weight is (level - zero) * scale. The last block may have rows too many.
    """

    rows: int
    levels: Array
    scales: Array
    zeros: Array

    @property
    def values(self) -> Array:
        """The weights, float32[rows, columns]."""
        values = (self.levels.astype(np.float32) - self.zeros[:, None]) * self.scales[:, None]
        found: Array = values.reshape(-1, values.shape[-1])[: self.rows].astype(np.float32)
        return found


def nearest(weights: Array, size: int, symmetric: bool) -> Blocks:
    """Each weight as the nearest of the 16 values that its block can have."""
    blocks = _split(weights, size)
    scales, zeros = _grid(blocks, symmetric)
    return Blocks(len(weights), _levels(blocks, scales, zeros), scales, zeros)


def hqq(weights: Array, size: int) -> Blocks:
    """Half-quadratic quantization (Badri and Shaji, 2023): zero points for which the error is
    sparse, so that outliers do not pull them; 20 steps with the paper's parameters.
    """
    blocks = _split(weights, size)
    scales, zeros = _grid(blocks, symmetric=False)
    power, weight = 0.7, 10.0
    for _ in range(20):
        levels = _levels(blocks, scales, zeros)
        error = blocks - (levels - zeros[:, None]) * scales[:, None]
        size_of = np.abs(error)
        shrunk = np.sign(error) * np.maximum(size_of - (size_of + 1e-8) ** (power - 1) / weight, 0)
        zeros = (levels - (blocks - shrunk) / scales[:, None]).mean(axis=1)
        weight *= 1.01
    return Blocks(len(weights), _levels(blocks, scales, zeros), scales, zeros)


def gptq(weights: Array, products: Array, size: int, symmetric: bool) -> Blocks:
    """GPTQ (Frantar et al., 2023): each row's rounding error is made up for by the rows after it.

    `products`: float64[rows, rows], the sum over activations x of their outer products.
    """
    left = weights.astype(np.float64)
    inverse = _inverse_root(products)
    levels, scales, zeros = [], [], []
    for start in range(0, len(left), size):
        end = min(start + size, len(left))
        block = left[start:end].copy()
        scale, zero = _grid(block[None], symmetric)
        within = inverse[start:end, start:end]
        errors = np.zeros_like(block)
        rounded = np.full((size, block.shape[1]), MIDDLE, np.uint8)
        for row in range(len(block)):
            rounded[row] = _levels(block[None, row : row + 1], scale, zero)[0, 0]
            wrong = block[row] - (rounded[row] - zero[0]) * scale[0]
            errors[row] = wrong / within[row, row]
            block[row:] -= np.outer(within[row, row:], errors[row])
        left[end:] -= inverse[start:end, end:].T @ errors
        levels.append(rounded)
        scales.append(scale[0])
        zeros.append(zero[0])
    return Blocks(len(left), np.stack(levels), np.stack(scales), np.stack(zeros))


def _inverse_root(products: Array) -> Array:
    """The upper Cholesky factor of the inverse of the damped products."""
    damped = products.astype(np.float64)
    damped[np.diag_indices_from(damped)] += DAMPING * max(float(np.diag(damped).mean()), 1e-12)
    root: Array = np.linalg.cholesky(np.linalg.inv(damped)).T
    return root


def _split(weights: Array, size: int) -> Array:
    padded = np.pad(weights, ((0, -len(weights) % size), (0, 0)))
    blocks: Array = padded.reshape(-1, size, weights.shape[1])
    return blocks


def _grid(blocks: Array, symmetric: bool) -> tuple[Array, Array]:
    """Scale and zero of each block and column. The symmetric grid has one value more on one side:
    it is turned to where the largest weight is.
    """
    low, high = blocks.min(axis=1), blocks.max(axis=1)
    if symmetric:
        largest = np.where(-low > high, low, high)
        scales = np.where(largest == 0, 1.0, largest / -MIDDLE)
        return scales, np.full_like(scales, MIDDLE)
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    scales = np.where(high == low, 1.0, (high - low) / HIGHEST)
    return scales, np.round(-low / scales)


def _levels(blocks: Array, scales: Array, zeros: Array) -> Array:
    levels = np.round(blocks / scales[:, None] + zeros[:, None])
    found: Array = np.clip(levels, 0, HIGHEST).astype(np.uint8)
    return found
