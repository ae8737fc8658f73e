"""One version of a group, from blobs to tensors: mapped, not copied, where it can be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from blyan_proto.block.model import Dtype
from blyan_tile import tblock
from blyan_tile.layout import Group, Layout, join
from blyan_tile.tblock import Outline
from blyand.errors import NotHere


class Blobs(Protocol):
    """What is read of the blob store; any thread may."""

    def open_array(self, root: bytes) -> np.ndarray: ...
    def outline(self, root: bytes) -> Outline: ...


def load_group(
    blobs: Blobs,
    layout: Layout,
    group: Group,
    tiles: Sequence[bytes],
    device: torch.device,
) -> dict[str, Tensor]:
    """Return the float32 parameters of one version of `group`; blocking.

    `tiles` are the roots of its weights in the layout's order. A parameter that is one
    float32 tile stays the read-only mapping of its file, on the CPU. NotHere when a
    tile is missing or is not of the layout's shape.
    """
    if len(tiles) != len(group.tiles):
        raise NotHere(f"{group.name}: {len(tiles)} tiles, not {len(group.tiles)}")
    arrays = [_open(blobs, root) for root in tiles]
    for tile, array in zip(group.tiles, arrays):
        if array.shape != tile.shape:
            raise NotHere(f"{group.name}: a tile of {array.shape}, not {tile.shape}")
    whole = _whole(layout, group, arrays)
    if len(whole) < len(group.parameters):
        whole = {**join(layout, group, arrays), **whole}
    return {
        name: tblock.to_torch(array, Dtype.F32).to(device)
        for name, array in whole.items()
    }


def _open(blobs: Blobs, root: bytes) -> np.ndarray:
    array = blobs.open_array(root)
    if blobs.outline(root).dtype not in (Dtype.F32, Dtype.F16, Dtype.BF16):
        raise NotHere(f"blob {root.hex()} holds no floats")
    return tblock.widened(array)


def _whole(
    layout: Layout, group: Group, arrays: Sequence[np.ndarray]
) -> Mapping[str, np.ndarray]:
    """Return the parameters that are exactly one tile, without a copy."""
    return {
        tile.pieces[0].parameter: array
        for tile, array in zip(group.tiles, arrays)
        if len(tile.pieces) == 1
        and tile.shape == layout.parameters[tile.pieces[0].parameter]
    }
