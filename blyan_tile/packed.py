"""Packed weights: a whole model in one file, its matrices as 8-bit integers.

A quarter of the float32 tiles, to be carried around: a seed model in a checkout. Packing
is a function of the tiles alone, so that who can prove the tiles (`tile replay`) packs
the same bytes. Unpacked, every number is value x scale, rounded once: the first weights
of another model. The format: docs/tile-layout.md, "Packed weights".

Letters: m rows, k columns of a tile.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Annotated

import numpy as np

from blyan_proto.block.model import Architecture, Dtype, Model, TensorClass
from blyan_proto.codec import U8, U32, U64, Size, decode, encode, message
from blyan_proto.constants import FORMAT_VERSION, MAX_GROUPS
from blyan_proto.errors import DecodeError, LimitExceeded
from blyan_proto.types import BlobId, BlockId, Hash, Name
from blyan_tile import tblock
from blyan_tile.jobs import Progress
from blyan_tile.layout import Group, Layout, Tile, layout_of
from blyan_tile.learner import GroupFiles, tiles_of
from blyan_tile.tokenizer import BYTES

MAX_INDEX_BYTES = 64 << 10
LARGEST = 127  # of a value in size, as in `quantised.int8_of`
LEAST = np.finfo(np.float32).tiny  # a scale, of a row of zeros
EXACT = frozenset({TensorClass.ROUTER, TensorClass.VECTOR})  # few numbers, that decide
_HEAD = struct.Struct("<I")


@message
class PackedIndex:
    """Whose weights these are, and which: the head of the file."""

    version: U8
    name: Name
    architecture: Architecture  # of a model that reads bytes
    network: Hash  # id of the genesis
    model: BlockId
    run: BlockId | None  # none: first weights
    round: U32  # rounds of that run
    groups: Annotated[tuple[Hash, ...], Size(1, MAX_GROUPS)]  # `layout.group_root`s


@message
class PackJob:
    """Write a model's weights into one file."""

    index: PackedIndex
    groups: Annotated[tuple[GroupFiles, ...], Size(1, MAX_GROUPS)]
    out: Annotated[str, Size(1, 4096)]


@message
class PackResult:
    """What was written."""

    root: BlobId
    bytes: U64


@dataclass(frozen=True)
class Packed:
    """A checked file; tiles are made on demand."""

    index: PackedIndex
    layout: Layout
    body: np.ndarray  # (n,) uint8, mapped

    def groups(self) -> Iterator[tuple[Group, list[np.ndarray]]]:
        """Yield every group with its tiles, float32. DecodeError if not finite."""
        start = 0
        for group in self.layout.groups:
            tiles = []
            for tile in group.tiles:
                stop = start + _bytes_of(tile)
                tiles.append(_unpacked(tile, self.body[start:stop]))
                start = stop
            yield group, tiles


def pack(job: PackJob, report: Callable[[Progress], None]) -> PackResult:
    """Run the job. OSError, ProtocolError; ValueError if files and layout disagree."""
    layout = layout_of(model_in(job.index))
    index = encode(job.index)
    parts = [_HEAD.pack(len(index)), index]
    for group, files in zip(layout.groups, job.groups, strict=True):
        for tile, array in zip(group.tiles, tiles_of(files), strict=True):
            if array.shape != tile.shape or not np.isfinite(array).all():
                raise ValueError(f"{group.name} tile {tile.index} is not as laid out")
            parts += _packed(tile, array)
        report(Progress(group.index + 1, len(layout.groups), group.name))
    raw = tblock.bytes_array(b"".join(parts))
    partial = Path(f"{job.out}.partial")
    partial.write_bytes(tblock.to_bytes(raw))
    os.replace(partial, job.out)
    return PackResult(tblock.root_of(raw), len(raw))


def read(path: str | Path) -> tuple[Packed, bytes]:
    """Return a stranger's file after hashing all of it, and its root.

    OSError; DecodeError, LimitExceeded and BadProof for what is no packed model.
    """
    with open(path, "rb") as file:
        outline = tblock.read_outline(file.fileno())
        if outline.dtype is not Dtype.U8 or len(outline.shape) != 1:
            raise DecodeError("packed weights are plain bytes")
        root = tblock.verify_file(file.fileno()).root
        raw = tblock.open_array(file.fileno())
    return opened(raw), root


def opened(raw: np.ndarray) -> Packed:
    """Return a stranger's packed weights, (n,) uint8, of the right length.

    DecodeError, LimitExceeded.
    """
    index, body = _split(raw)
    layout = layout_of(model_in(index))
    if len(body) != packed_bytes(layout):
        raise DecodeError(f"{len(body)} bytes of weights, not {packed_bytes(layout)}")
    if len(index.groups) != len(layout.groups):
        raise DecodeError(f"{len(index.groups)} groups, not {len(layout.groups)}")
    return Packed(index, layout, body)


def model_in(index: PackedIndex) -> Model:
    """Return a model block's payload with the layout of the packed one."""
    return Model(
        FORMAT_VERSION, index.name, index.architecture, BYTES, Dtype.F32, 1, ""
    )


def packed_bytes(layout: Layout) -> int:
    """Return what a model's weights take behind the index."""
    return sum(_bytes_of(tile) for group in layout.groups for tile in group.tiles)


def _split(raw: np.ndarray) -> tuple[PackedIndex, np.ndarray]:
    if len(raw) < _HEAD.size:
        raise DecodeError("packed weights without an index")
    (length,) = _HEAD.unpack(raw[: _HEAD.size].tobytes())
    if length > MAX_INDEX_BYTES:
        raise LimitExceeded(f"an index of {length} bytes")
    stop = _HEAD.size + length
    if stop > len(raw):
        raise DecodeError("the index is longer than the file")
    index = decode(PackedIndex, raw[_HEAD.size : stop].tobytes(), MAX_INDEX_BYTES)
    if index.version != FORMAT_VERSION:
        raise DecodeError(f"packed weights of version {index.version}")
    return index, raw[stop:]


def _bytes_of(tile: Tile) -> int:
    if tile.tensor_class in EXACT:
        return 4 * prod(tile.shape)
    return 4 * tile.shape[0] + prod(tile.shape)


def _packed(tile: Tile, array: np.ndarray) -> list[bytes]:
    """Return a tile (m, k) as its scales and its values, or as it is."""
    if tile.tensor_class in EXACT:
        return [array.astype("<f4").tobytes()]
    most = np.abs(array).max(axis=1, keepdims=True)  # (m, 1)
    scale = np.maximum(most / np.float32(LARGEST), LEAST)  # (m, 1)
    values = np.rint(array / scale).astype(np.int8)  # (m, k)
    return [scale.astype("<f4").tobytes(), values.tobytes()]


def _unpacked(tile: Tile, raw: np.ndarray) -> np.ndarray:
    """Return a tile as float32 from its bytes. DecodeError if a number is not finite."""
    if tile.tensor_class in EXACT:
        array = np.frombuffer(raw, "<f4").reshape(tile.shape).astype(np.float32)
    else:
        rows = tile.shape[0]
        scale = np.frombuffer(raw[: 4 * rows], "<f4").reshape(rows, 1)  # (m, 1)
        values = np.frombuffer(raw[4 * rows :], np.int8).reshape(tile.shape)  # (m, k)
        with np.errstate(over="ignore", invalid="ignore"):
            array = values.astype(np.float32) * scale.astype(np.float32)
    if not np.isfinite(array).all():
        raise DecodeError(f"tile {tile.index}: a number is not finite")
    return array
