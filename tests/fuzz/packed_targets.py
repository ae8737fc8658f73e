"""Fuzz target of packed weights: index, lengths, scales and what is made of them."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from blyan_proto.codec import encode
from blyan_tile.create import architecture_of
from blyan_tile.layout import layout_of
from blyan_tile.packed import Packed, PackedIndex, model_in, opened, packed_bytes

SHAPE = replace(
    architecture_of("tiny"),
    vocabulary=16,
    width=8,
    heads=1,
    kv_heads=1,
    head_width=8,
    experts=2,
    expert_width=8,
)


def unpacked(raw: bytes) -> Packed:
    found = opened(np.frombuffer(raw, np.uint8))
    for group, tiles in found.groups():
        for tile, array in zip(group.tiles, tiles, strict=True):
            assert array.shape == tile.shape and array.dtype == np.float32
            assert np.isfinite(array).all()
    return found


def sample() -> bytes:
    index = PackedIndex(1, "x", SHAPE, bytes(32), bytes(32), None, 0, (bytes(32),))
    layout = layout_of(model_in(index))
    index = replace(index, groups=(bytes(32),) * len(layout.groups))
    head = encode(index)
    body = bytes(i % 63 for i in range(packed_bytes(layout)))  # finite as floats
    return struct.pack("<I", len(head)) + head + body


TARGETS: dict[str, tuple[Callable[[bytes], Any], None, tuple[bytes, ...]]] = {
    "packed weights": (unpacked, None, (sample(),)),
}
