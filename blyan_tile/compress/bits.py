"""Fields of a few bits in bytes, the first in the lowest bits. Whole arrays at a time."""

from __future__ import annotations

import numpy as np

from blyan_proto.errors import DecodeError


def packed(values: np.ndarray, width: int) -> bytes:
    """Return unsigned `values` below 2^width as fields of `width` (0..16) bits."""
    if not width:
        return b""
    pairs = np.ascontiguousarray(values, "<u2").view(np.uint8).reshape(-1, 2)
    bits = np.unpackbits(pairs, axis=1, count=width, bitorder="little")
    return np.packbits(bits, bitorder="little").tobytes()


def packed_bytes(count: int, width: int) -> int:
    """Return how many bytes `count` fields take."""
    return (count * width + 7) // 8


def unpacked(raw: memoryview, count: int, width: int) -> np.ndarray:
    """Return `count` fields of `width` (0..16) bits, uint16. DecodeError for padding.

    `raw` has exactly packed_bytes(count, width).
    """
    bits = np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little")
    used = count * width
    if bits[used:].any():
        raise DecodeError("padding is not zero")
    pairs = np.packbits(
        bits[:used].reshape(count, width), axis=1, bitorder="little"
    )  # (count, 0, 1 or 2)
    whole = np.zeros((count, 2), np.uint8)
    whole[:, : pairs.shape[1]] = pairs
    return whole.view("<u2")[:, 0]
