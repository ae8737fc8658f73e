"""The codecs by wire code. A delta begins with its codec and setting, one byte each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import numpy as np

from blyan_proto.block.model import Codec
from blyan_proto.constants import MAX_TILE_ELEMENTS
from blyan_proto.errors import DecodeError, LimitExceeded
from blyan_tile.compress import dense, lr4

Shape = tuple[int, ...]
Encoded = tuple[bytes, np.ndarray | None]


@dataclass(frozen=True)
class Scheme:
    """What one codec can do."""

    encode: Callable[[int, np.ndarray, np.ndarray | None], Encoded]
    decode: Callable[[bytes, Shape], np.ndarray]
    encoded_bytes: Callable[[int, Shape], int]
    norm_squared: Callable[[bytes, Shape], tuple[int, int]]


SCHEMES = {
    Codec.DENSE: Scheme(
        dense.encode, dense.decode, dense.encoded_bytes, dense.norm_squared
    ),
    Codec.LR4: Scheme(lr4.encode, lr4.decode, lr4.encoded_bytes, lr4.norm_squared),
}


def encode(
    codec: Codec, setting: int, x: np.ndarray, warm: np.ndarray | None = None
) -> Encoded:
    """Return the bytes of the float32 tile `x` and what to pass as `warm` next time.

    Vectors are sent DENSE whatever the codec. ValueError if `x` is not finite, too
    large for the codec, or the setting is none of the codec's.
    """
    codec, setting = applied(codec, setting, x.shape)
    return SCHEMES[codec].encode(setting, np.asarray(x, np.float32), warm)


def applied(codec: Codec, setting: int, shape: Shape) -> tuple[Codec, int]:
    """Return the codec and the setting byte that a tile of `shape` is sent with."""
    if codec not in SCHEMES:
        raise ValueError(f"codec {codec.name} is not in this version")
    if codec is Codec.DENSE or len(shape) != 2:
        return Codec.DENSE, 0
    return codec, lr4.rank_of(setting, shape)


def encoded_bytes(codec: Codec, setting: int, shape: Shape) -> int:
    """Return how many bytes a tile of `shape` takes, an upper bound."""
    codec, setting = applied(codec, setting, shape)
    return SCHEMES[codec].encoded_bytes(setting, shape)


def header_of(raw: bytes) -> tuple[Codec, int]:
    """Return the codec and setting that a delta declares. DecodeError."""
    if len(raw) < 2:
        raise DecodeError(f"a delta of {len(raw)} bytes")
    if raw[0] not in Codec._value2member_map_:
        raise DecodeError(f"{raw[0]} is not a codec")
    codec = Codec(raw[0])
    if codec not in SCHEMES:
        raise DecodeError(f"codec {codec.name} is not in this version")
    return codec, raw[1]


def decode(raw: bytes, shape: Shape) -> np.ndarray:
    """Return the exact values of a foreign delta, float64 of `shape`.

    DecodeError, LimitExceeded; nothing is allocated before the length is checked.
    """
    return _scheme(raw, shape).decode(raw, shape)


def norm_squared(raw: bytes, shape: Shape) -> tuple[int, int]:
    """Return (n, e): the squared norm of a foreign delta is exactly n * 2^e (DEC-B15).

    Errors as `decode`.
    """
    return _scheme(raw, shape).norm_squared(raw, shape)


def _scheme(raw: bytes, shape: Shape) -> Scheme:
    if prod(shape) > MAX_TILE_ELEMENTS:
        raise LimitExceeded(f"a tile of {shape}, at most {MAX_TILE_ELEMENTS} elements")
    codec, _ = header_of(raw)
    return SCHEMES[codec]
