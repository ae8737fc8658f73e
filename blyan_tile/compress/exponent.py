"""The one power of two that a coded tile has, and numbers near 1 to find it with."""

from __future__ import annotations

import numpy as np

MIN_EXPONENT, MAX_EXPONENT = -149, 96  # integers below 2^31 times it fit float32


def lifted(x: np.ndarray) -> tuple[np.ndarray, int]:
    """Return (y, lift), x = y * 2^lift and the largest |y| in 0.5..1; 0 if x is zero.

    ValueError if `x` is not finite.
    """
    peak = float(np.abs(x).max())
    if not np.isfinite(peak):
        raise ValueError("the delta is not finite")
    if peak == 0.0:
        return x, 0
    lift = int(np.frexp(peak)[1])
    # near 1, so that no square leaves float32; in two steps, as 2^148 does as well
    return (
        x * np.float32(2.0 ** -(lift // 2)) * np.float32(2.0 ** (lift // 2 - lift)),
        lift,
    )


def scales_of(
    steps: np.ndarray, lift: int, least: int = 0
) -> tuple[np.ndarray, np.ndarray, int]:
    """Return (scales, steps as sent, exponent): steps as u8 times one power of two.

    `steps` are of a lifted x, not negative; the largest fills 8 bits, the smallest
    is `least`. ValueError where the exponent leaves its range.
    """
    exponent = int(np.frexp(steps.max())[1]) - 8
    exponent = max(exponent, MIN_EXPONENT - lift)
    if exponent + lift > MAX_EXPONENT:
        raise ValueError("the delta is too large for its codec")
    scales = np.clip(np.rint(np.ldexp(steps, -exponent)), least, 255)
    sent = np.ldexp(scales.astype(np.float32), exponent)
    return scales.astype(np.uint8), sent, exponent + lift
