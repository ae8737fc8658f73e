"""DENSE: every element as float16. For vectors, and as the baseline of the others."""

from __future__ import annotations

from math import prod

import numpy as np

from blyan_proto.block.model import Codec
from blyan_proto.errors import DecodeError, NotFinite
from blyan_tile.compress.scheme import Scheme

_HEADER = bytes((Codec.DENSE, 0))
_HALF = np.dtype("<f2")
_UNIT_EXPONENT = -24  # every float16 is an integer times 2^-24


def encoded_bytes(setting: int, shape: tuple[int, ...]) -> int:
    """Return the exact length of the encoding."""
    return len(_HEADER) + _HALF.itemsize * prod(shape)


def encode(
    setting: int, x: np.ndarray, warm: np.ndarray | None
) -> tuple[bytes, np.ndarray | None]:
    """Return the bytes of `x`; ValueError if float16 overflows or `x` is not finite."""
    with np.errstate(over="ignore"):
        half = x.astype(_HALF)
    if not np.isfinite(half).all():
        raise ValueError("a value of the delta is not finite in float16")
    return _HEADER + half.tobytes(), None


def decode(raw: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """Return the exact values, float64 of `shape`. DecodeError."""
    return _halves(raw, shape).astype(np.float64)


def norm_squared(raw: bytes, shape: tuple[int, ...]) -> tuple[int, int]:
    """Return (n, e) with the squared norm being exactly n * 2^e. DecodeError."""
    units = _halves(raw, shape).astype(np.float64) * 2.0**-_UNIT_EXPONENT
    # |unit| < 2^40: in halves of 20 bits no int64 sum over 2^20 elements overflows.
    high, low = np.divmod(units.astype(np.int64).ravel(), 1 << 20)
    total = (
        (int((high * high).sum()) << 40)
        + (int((high * low).sum()) << 21)
        + int((low * low).sum())
    )
    return total, 2 * _UNIT_EXPONENT


def _halves(raw: bytes, shape: tuple[int, ...]) -> np.ndarray:
    if len(raw) != encoded_bytes(0, shape):
        raise DecodeError(f"{len(raw)} bytes of DENSE for {shape}")
    if raw[: len(_HEADER)] != _HEADER:
        raise DecodeError("DENSE has no setting")
    half = np.frombuffer(raw, _HALF, offset=len(_HEADER)).reshape(shape)
    if not np.isfinite(half).all():
        raise NotFinite("a value of the delta is not finite")
    return half


SCHEME = Scheme(encode, decode, encoded_bytes, norm_squared)
