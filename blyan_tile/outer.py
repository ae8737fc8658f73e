"""The outer optimiser: one step of a tile's weights and Nesterov momentum (DEC-B1).

Separate float32 ufuncs in the order of docs/block-format.md 9; never fused, never BLAS.
"""

from __future__ import annotations

import numpy as np

from blyan_tile.aggregate import fraction


def step(
    weights: np.ndarray,
    momentum: np.ndarray | None,
    gradient: np.ndarray,
    rate_ppm: int,
    momentum_ppm: int,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return new float32 (weights, momentum); the arguments stay as they are.

    gradient = base - local, so it is subtracted. Momentum None counts as zeros; with
    momentum_ppm 0 there is none and None comes back.
    """
    for array in (
        (weights, gradient)
        if momentum is None
        else (
            weights,
            gradient,
            momentum,
        )
    ):
        if array.dtype != np.float32 or array.shape != weights.shape:
            raise ValueError(f"{array.dtype} {array.shape} in an outer step")
    rate = fraction(rate_ppm)
    with np.errstate(over="ignore", invalid="ignore"):
        if momentum_ppm == 0:
            change = np.multiply(gradient, rate)
            return np.subtract(weights, change, out=change), None
        mu = fraction(momentum_ppm)
        if momentum is None:
            momentum = np.zeros_like(weights)
        after = np.multiply(momentum, mu)
        np.add(after, gradient, out=after)  # m' = mu * m + g
        change = np.multiply(after, mu)
        np.add(gradient, change, out=change)
        np.multiply(change, rate, out=change)
        # w' = w - lr * (g + mu * m')
        return np.subtract(weights, change, out=change), after
