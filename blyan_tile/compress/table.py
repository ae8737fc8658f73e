"""The codecs by wire code. A delta begins with its codec, one byte, and its setting."""

from __future__ import annotations

from math import prod

import numpy as np

from blyan_proto.block.model import Codec
from blyan_proto.constants import MAX_TILE_ELEMENTS
from blyan_proto.errors import DecodeError, LimitExceeded
from blyan_tile.compress import dense, lr4, lrc, q, rows, sc
from blyan_tile.compress.scheme import Encoded, Scheme, Shape

SCHEMES = {
    Codec.DENSE: dense.SCHEME,
    Codec.LR4: lr4.SCHEME,
    Codec.SC: sc.SCHEME,
    Codec.Q: q.SCHEME,
    Codec.ROWS: rows.SCHEME,
    Codec.LRC: lrc.SCHEME,
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
    """Return the codec and the setting that a tile of `shape` is sent with."""
    if codec not in SCHEMES:
        raise ValueError(f"codec {codec.name} is not in this version")
    if codec is Codec.DENSE or len(shape) != 2:
        return Codec.DENSE, 0
    return codec, lr4.rank_of(setting, shape) if codec is Codec.LR4 else setting


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
    field = raw[1 : 1 + SCHEMES[codec].setting_bytes]
    return codec, int.from_bytes(field, "little")


def check(codec: Codec, setting: int, raw: bytes, shape: Shape) -> None:
    """Raise DecodeError unless `raw` is of this codec, setting and length.

    Cheap; `decode` still judges the content.
    """
    expected = applied(codec, setting, shape)
    if header_of(raw) != expected:
        raise DecodeError(f"not {expected[0].name} {expected[1]}")
    most, exact = encoded_bytes(*expected, shape), SCHEMES[expected[0]].exact
    if len(raw) > most or exact and len(raw) != most:
        raise DecodeError(f"{len(raw)} bytes, {'not' if exact else 'at most'} {most}")


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
