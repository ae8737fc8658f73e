"""Matrices by bands: rows over all columns, put together from the tiles that hold them.

Strategy. A product is computed band by band, whether the weights are in memory or are
read from their files in passing: the same calls of the same shapes, so the same bits
(DEC-S1). A band has all columns, so nothing is summed over a cut (HZ-60); tiles that
stand side by side are copied into one buffer, a tile as wide as its matrix is not.

Letters: n tokens, k inputs, m outputs, b rows of a band.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from blyan_tile.layout import Group
from blyan_tile.quantised import Tokens
from blyan_tile.recipe import Gated, Recipe, Weight, bytes_of, derive

PARTS = ("gate", "up", "down")  # the matrices of an expert


@dataclass(frozen=True)
class Band:
    """Some rows of a matrix, all of their columns."""

    rows: int
    columns: int
    tiles: tuple[int, ...]  # of the group, from left to right


@dataclass(frozen=True)
class Banded:
    """A matrix (m, k) whose bands are ready to be multiplied."""

    bands: tuple[Weight, ...]

    def __call__(self, tokens: Tokens) -> Tensor:
        """tokens (n, k) -> (n, m) float32."""
        return torch.cat([band(tokens) for band in self.bands], dim=1)


@dataclass(frozen=True)
class Streamed:
    """A matrix (m, k) that is derived anew for every product, one band at a time."""

    recipe: Recipe
    bands: tuple[Band, ...]
    tiles: Sequence[Tensor]  # of the group, mapped
    device: torch.device

    def __call__(self, tokens: Tokens) -> Tensor:
        """tokens (n, k) -> (n, m) float32."""
        return torch.cat([self._derived(band)(tokens) for band in self.bands], dim=1)

    def _derived(self, band: Band) -> Weight:
        return derive(self.recipe, rows_of(band, self.tiles).to(self.device))


def bands_of(group: Group, parameter: str) -> tuple[Band, ...]:
    """Return the bands of a matrix of `group`, from its first row on."""
    by_row: dict[tuple[int, int], list[int]] = {}
    columns = 0
    for tile in group.tiles:
        (piece,) = tile.pieces
        if piece.parameter == parameter:
            by_row.setdefault((piece.row0, piece.row1), []).append(tile.index)
            columns = max(columns, piece.col1)
    return tuple(
        Band(row1 - row0, columns, tuple(tiles))
        for (row0, row1), tiles in by_row.items()
    )


def rows_of(band: Band, tiles: Sequence[Tensor]) -> Tensor:
    """Return a band (b, k) as it is stored; a copy if several tiles make it."""
    if len(band.tiles) == 1:
        return tiles[band.tiles[0]]
    return torch.cat([tiles[index] for index in band.tiles], dim=1)  # (b, k)


def expert_bytes(group: Group, recipe: Recipe) -> int:
    """Return what the expert `group` takes when it is ready in `recipe`."""
    return sum(
        bytes_of(recipe, band.rows, band.columns)
        for part in PARTS
        for band in bands_of(group, f"{group.name}.{part}.weight")
    )


def ready_expert(
    group: Group, tiles: Sequence[Tensor], recipe: Recipe, device: torch.device
) -> Gated:
    """Return the expert `group` made of its stored tiles; a mapping where it can be."""

    def ready(part: str) -> Weight:
        bands = bands_of(group, f"{group.name}.{part}.weight")
        made = [derive(recipe, rows_of(band, tiles).to(device)) for band in bands]
        return made[0] if len(made) == 1 else Banded(tuple(made))

    return Gated(recipe, *(ready(part) for part in PARTS))


def streamed_expert(
    group: Group, tiles: Sequence[Tensor], recipe: Recipe, device: torch.device
) -> Gated:
    """Return the same expert without ever holding more than a band of it."""

    def streamed(part: str) -> Streamed:
        bands = bands_of(group, f"{group.name}.{part}.weight")
        return Streamed(recipe, bands, tiles, device)

    return Gated(recipe, *(streamed(part) for part in PARTS))
