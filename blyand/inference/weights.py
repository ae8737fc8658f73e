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
    arrays = [tblock.widened(array) for array, _ in _opened(blobs, group, tiles)]
    whole = _whole(layout, group, arrays)
    if len(whole) < len(group.parameters):
        whole = {**join(layout, group, arrays), **whole}
    return {
        name: tblock.to_torch(array, Dtype.F32).to(device)
        for name, array in whole.items()
    }


def open_tiles(blobs: Blobs, group: Group, tiles: Sequence[bytes]) -> list[Tensor]:
    """Return the tiles of one version of `group` as they are stored, mapped; blocking.

    Read-only. NotHere as above.
    """
    opened = _opened(blobs, group, tiles)
    return [tblock.to_torch(array, dtype) for array, dtype in opened]


def _opened(
    blobs: Blobs, group: Group, tiles: Sequence[bytes]
) -> list[tuple[np.ndarray, Dtype]]:
    if len(tiles) != len(group.tiles):
        raise NotHere(f"{group.name}: {len(tiles)} tiles, not {len(group.tiles)}")
    made: list[tuple[np.ndarray, Dtype]] = []
    for tile, root in zip(group.tiles, tiles):
        array, dtype = blobs.open_array(root), blobs.outline(root).dtype
        if dtype not in (Dtype.F32, Dtype.F16, Dtype.BF16):
            raise NotHere(f"blob {root.hex()} holds no floats")
        if array.shape != tile.shape:
            raise NotHere(f"{group.name}: a tile of {array.shape}, not {tile.shape}")
        made.append((array, dtype))
    return made


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
