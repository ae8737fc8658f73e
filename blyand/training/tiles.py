"""Forming the next version of a group from its base, the accepted deltas and the run.

Blocking functions for a thread lane; blobs in, blobs out. DEC-B1, B4, B5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from blyan_proto.block.model import Run, TileRoots, TileRootsList, TileUpdate
from blyan_proto.codec import decode
from blyan_proto.errors import BadProof, DecodeError
from blyan_proto.protocols.delta import MAX_BUNDLE_BYTES, Delta
from blyan_tile import delta as deltas
from blyan_tile import tblock
from blyan_tile.layout import Group
from blyand.store.blobs import BlobStore


@dataclass(frozen=True)
class Listed:
    """One delta as an update lists it."""

    weight_ppm: int
    clip_ppm: int
    tiles: Sequence[bytes]  # encoded


def load(
    blobs: BlobStore, group: Group, roots: TileRootsList
) -> list[deltas.TileState]:
    """Return (weights, momentum) of each tile as float32; what is stored so is a view.

    First weights of f16 or bf16 are widened exactly (DEC-B2). NotHere.
    """
    states: list[deltas.TileState] = []
    for tile, root in zip(group.tiles, roots, strict=True):
        weights = blobs.open_array(root.weights)
        momentum = blobs.open_array(root.momentum) if root.momentum else None
        if weights.shape != tile.shape:
            raise DecodeError(f"{group.name} tile {tile.index} has another shape")
        try:
            states.append((tblock.widened(weights), momentum))
        except ValueError as error:
            raise DecodeError(f"{group.name} tile {tile.index}: {error}") from None
    return states


def advance(
    blobs: BlobStore,
    group: Group,
    base: TileRootsList,
    parts: Sequence[Listed],
    run: Run,
) -> TileRootsList:
    """Compute and store the group's next version; return its roots.

    `parts` are in ascending order of learner. The tiles are derived blobs: not synced,
    rebuilt from snapshot and updates if lost (DEC-B4).
    """
    if not parts:
        return base
    after = stepped(group, load(blobs, group, base), parts, run)
    return tuple(
        TileRoots(
            blobs.put_array(weights, durable=False),
            None if momentum is None else blobs.put_array(momentum, durable=False),
        )
        for weights, momentum in after
    )


def stepped(
    group: Group,
    state: Sequence[deltas.TileState],
    parts: Sequence[Listed],
    run: Run,
) -> list[deltas.TileState]:
    """Return the group's tiles after an update. DecodeError as `deltas.next_tiles`."""
    return deltas.next_tiles(
        group,
        state,
        [(part.weight_ppm, part.tiles) for part in parts],
        run,
        [part.clip_ppm for part in parts],
    )


def parts_of(
    blobs: BlobStore, update: TileUpdate, group: Group, run: Run
) -> list[Listed]:
    """Read an update's deltas out of its blob, each checked against what it lists.

    BadProof or DecodeError when the blob does not hold exactly that.
    """
    if update.blob is None:
        return []
    raw = blobs.open_array(update.blob)
    listed = sum(part.bytes for part in update.contributions)
    if raw.dtype != np.uint8 or raw.shape != (listed,):
        raise DecodeError("the update's blob is not its deltas, one after the other")
    base = tuple(root.weights for root in update.base)
    named = (update.run, update.round, update.group)
    parts: list[Listed] = []
    for part in update.contributions:
        piece = raw[part.offset : part.offset + part.bytes].tobytes()
        delta = decode(Delta, piece, MAX_BUNDLE_BYTES)
        if delta.digest != part.delta:
            raise BadProof("a delta does not match the digest that the update lists")
        if delta.learner != part.learner or delta.tokens != part.tokens:
            raise DecodeError("a delta is of another learner, or of other tokens")
        if (delta.run, delta.round, delta.group) != named:
            raise DecodeError("a delta is of another run, round or group")
        if delta.base != base:
            raise DecodeError("a delta was made for another base")
        if run.delta_clip_ppm and deltas.norm(group, delta.tiles) != part.norm:
            raise DecodeError("a delta has another norm than the update lists")
        parts.append(Listed(part.weight_ppm, part.clip_ppm, delta.tiles))
    return parts
