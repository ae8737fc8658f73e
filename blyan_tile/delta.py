"""The change of a group from one version to the next: what an update block means.

Every holder computes it for itself from the base, the listed deltas and the run; the
roots of the result are what the block claims. DEC-B1, DEC-B5, docs/block-format.md 9.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import isqrt

import numpy as np

from blyan_proto.block.model import Codec, Run, TensorClass
from blyan_proto.errors import DecodeError, LimitExceeded
from blyan_tile import compress
from blyan_tile.aggregate import weighted_sum
from blyan_tile.layout import Group
from blyan_tile.outer import step

NORM_UNITS = 2**24  # norms in blocks are integers of 2^-24

TileState = tuple[np.ndarray, np.ndarray | None]  # float32 weights, outer momentum


def choice_of(run: Run, tensor_class: TensorClass, round_: int) -> tuple[Codec, int]:
    """Return (codec, setting) that the run prescribes for a class in a round.

    The last entry that has begun counts; a class without one is sent DENSE.
    """
    codec, setting, since = Codec.DENSE, 0, -1
    for choice in run.codecs:
        if choice.tensor_class is tensor_class and since < choice.from_round <= round_:
            codec, setting, since = choice.codec, choice.setting, choice.from_round
    return codec, setting


def check(group: Group, encoded: Sequence[bytes], run: Run, round_: int) -> None:
    """Raise DecodeError unless each tile has the codec, setting and length of the run.

    Cheap; `compress.decode` still judges the content.
    """
    if len(encoded) != len(group.tiles):
        raise DecodeError(
            f"{len(encoded)} tiles for {group.name}, not {len(group.tiles)}"
        )
    for tile, raw in zip(group.tiles, encoded):
        codec, setting = choice_of(run, tile.tensor_class, round_)
        try:
            compress.check(codec, setting, raw, tile.shape)
        except DecodeError as error:
            raise DecodeError(f"{group.name} tile {tile.index}: {error}") from error


def encode_group(
    group: Group,
    tiles: Sequence[np.ndarray],
    run: Run,
    round_: int,
    warm: Sequence[np.ndarray | None],
) -> tuple[list[bytes], list[np.ndarray | None]]:
    """Return the encoded tiles of a group's change and the next `warm`.

    `tiles` are base - local plus the residual, float32. ValueError where not finite.
    """
    pairs = [
        compress.encode(*choice_of(run, tile.tensor_class, round_), x, start)
        for tile, x, start in zip(group.tiles, tiles, warm, strict=True)
    ]
    return [raw for raw, _ in pairs], [start for _, start in pairs]


def decode_group(group: Group, encoded: Sequence[bytes]) -> list[np.ndarray]:
    """Return the exact values, float64, of a group's encoded tiles. DecodeError."""
    if len(encoded) != len(group.tiles):
        raise DecodeError(f"{len(encoded)} tiles, not {len(group.tiles)}")
    return [compress.decode(raw, tile.shape) for tile, raw in zip(group.tiles, encoded)]


def norm(group: Group, encoded: Sequence[bytes]) -> int:
    """Return the norm of a group's delta in units of 2^-24, rounded down (DEC-B15).

    Exact in integers, so that holders agree. DecodeError; LimitExceeded beyond a u64.
    """
    if len(encoded) != len(group.tiles):
        raise DecodeError(f"{len(encoded)} tiles, not {len(group.tiles)}")
    total = sum(
        Fraction(count) * Fraction(2) ** exponent
        for count, exponent in (
            compress.norm_squared(raw, tile.shape)
            for tile, raw in zip(group.tiles, encoded)
        )
    )
    units = isqrt(int(total * NORM_UNITS**2))
    if units >= 2**64:
        raise LimitExceeded(f"the delta of {group.name} is too large")
    return units


def next_tiles(
    group: Group,
    base: Sequence[TileState],
    parts: Sequence[tuple[int, Sequence[bytes]]],
    run: Run,
    clips_ppm: Sequence[int] | None = None,
) -> list[TileState]:
    """Return the group's tiles after an update: new arrays, or `base` without parts.

    `parts` are (weight_ppm, encoded tiles) in the block's order; without any the base
    stands. `clips_ppm` are the factors on them, None for 10^6 each. DecodeError for
    deltas that do not decode, have no weight, or lead to values that are not finite.
    """
    if len(base) != len(group.tiles):
        raise ValueError(f"{len(base)} tiles for {group.name}, not {len(group.tiles)}")
    if not parts:
        return list(base)
    if any(len(encoded) != len(group.tiles) for _, encoded in parts):
        raise DecodeError(f"a delta of {group.name} lacks tiles")
    if clips_ppm is not None and len(clips_ppm) != len(parts):
        raise ValueError(f"{len(clips_ppm)} clips for {len(parts)} deltas")
    if not any(weight for weight, _ in parts):
        raise DecodeError("an update without weight")
    after = []
    for tile, (weights, momentum) in zip(group.tiles, base):
        values = (
            (weight, compress.decode(encoded[tile.index], tile.shape))
            for weight, encoded in parts
        )
        gradient = weighted_sum(values, clips_ppm)
        state = step(
            weights, momentum, gradient, run.outer_rate_ppm, run.outer_momentum_ppm
        )
        if not all(np.isfinite(array).all() for array in state if array is not None):
            raise DecodeError(f"{group.name} tile {tile.index} would not be finite")
        after.append(state)
    return after
