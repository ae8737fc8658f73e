"""ROWS: which rows are sent, and those rows by another codec. For embeddings.

A row of an embedding that no token touched has no change but decay. A map with one bit
per row costs next to nothing beside the rows themselves. docs/tile-layout.md.
"""

from __future__ import annotations

import struct

import numpy as np

from blyan_proto.block.model import Codec
from blyan_proto.block.sending import check, rows_parts
from blyan_proto.errors import DecodeError
from blyan_tile.compress import lr4, lrc, q
from blyan_tile.compress.exponent import lifted
from blyan_tile.compress.scheme import Scheme

_HEADER = struct.Struct("<BH")  # codec, setting
_INSIDE = {Codec.LR4: lr4.SCHEME, Codec.LRC: lrc.SCHEME, Codec.Q: q.SCHEME}
# Of the squared norm of a typical row: less is decay alone, which waits in the residual
# until it has grown to this.
_LEAST = 1 / 16


def encoded_bytes(setting: int, shape: tuple[int, ...]) -> int:
    """Return the bound on the length of an encoding: every row is sent. ValueError."""
    check(Codec.ROWS, setting)
    if len(shape) != 2:
        raise ValueError("ROWS is for matrices")
    codec, inside = rows_parts(setting)
    most = _INSIDE[codec].encoded_bytes(inside, shape)
    return _HEADER.size + -(-shape[0] // 8) + most


def encode(
    setting: int, x: np.ndarray, warm: np.ndarray | None
) -> tuple[bytes, np.ndarray | None]:
    """Return the bytes of `x` (m, n) float32 and the next `warm` of the codec inside.

    ValueError if `x` is not finite or too large.
    """
    encoded_bytes(setting, x.shape)
    sent = _touched(x)
    head = _HEADER.pack(Codec.ROWS, setting)
    head += np.packbits(sent, bitorder="little").tobytes()
    if not sent.any():
        return head, warm
    codec, inside = rows_parts(setting)
    raw, after = _INSIDE[codec].encode(inside, x[sent], warm)
    return head + raw, after


def _touched(x: np.ndarray) -> np.ndarray:
    """Return (m,) bool: the rows that are not small beside those that hold the norm."""
    squares = np.square(lifted(x)[0]).sum(axis=1)
    total = squares.sum()
    if not total:
        return np.zeros(len(x), bool)
    typical = float(squares @ squares) / float(
        total
    )  # mean over the norm, not the rows
    sent: np.ndarray = squares >= _LEAST * typical
    return sent


def _parts(raw: bytes, shape: tuple[int, ...]) -> tuple[np.ndarray, Codec, bytes]:
    """Return (rows sent (m,) bool, codec inside, its bytes). DecodeError."""
    if len(raw) < _HEADER.size:
        raise DecodeError(f"{len(raw)} bytes of ROWS")
    codec, setting = _HEADER.unpack_from(raw)
    try:
        bound = encoded_bytes(setting, shape)
    except ValueError as error:
        raise DecodeError(str(error)) from error
    start = _HEADER.size + -(-shape[0] // 8)
    if codec != Codec.ROWS or not start <= len(raw) <= bound:
        raise DecodeError(f"{len(raw)} bytes of ROWS {setting} for {shape}")
    field = np.frombuffer(raw[_HEADER.size : start], np.uint8)
    bits = np.unpackbits(field, bitorder="little").astype(bool)
    sent, inside = bits[: shape[0]], raw[start:]
    if bits[shape[0] :].any():
        raise DecodeError("padding of ROWS is not zero")
    found, part = rows_parts(setting)
    if not sent.any():
        if inside:
            raise DecodeError(f"{len(inside)} bytes of ROWS without a row")
        return sent, found, inside
    short = (int(sent.sum()), shape[1])
    size = lr4.rank_of(part, short) if found is Codec.LR4 else part
    if inside[:2] != bytes((found, size)):
        raise DecodeError(f"not {found.name} {size} inside ROWS")
    return sent, found, inside


def decode(raw: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """Return the exact values, float64 of `shape`. DecodeError."""
    sent, codec, inside = _parts(raw, shape)
    out = np.zeros(shape, np.float64)
    if inside:
        out[sent] = _INSIDE[codec].decode(inside, (int(sent.sum()), shape[1]))
    return out


def norm_squared(raw: bytes, shape: tuple[int, ...]) -> tuple[int, int]:
    """Return (n, e) with the squared norm being exactly n * 2^e. DecodeError."""
    sent, codec, inside = _parts(raw, shape)
    if not inside:
        return 0, 0
    return _INSIDE[codec].norm_squared(inside, (int(sent.sum()), shape[1]))


SCHEME = Scheme(encode, decode, encoded_bytes, norm_squared, 2, exact=False)
