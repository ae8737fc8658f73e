"""Matrices by bands: rows over all columns, put together from the tiles that hold them.

Strategy. A product is computed band by band, whether the weights are in memory or are
read from their files in passing: the same calls of the same shapes, so the same bits
(DEC-S1). A band has all columns, so nothing is summed over a cut (HZ-60); tiles that
stand side by side are copied into one buffer, a tile as wide as its matrix is not.

Letters: n tokens, k inputs, m outputs, b rows of a band.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from blyan_tile.layout import Group
from blyan_tile.model.expert import Expert
from blyan_tile.quantised import Tokens
from blyan_tile.recipe import Gated, Recipe, Weight, bytes_of, derive
from blyan_tile.slice import WHOLE, Slice

Send = Callable[[Tensor], Tensor]  # brings a stored tensor to where it is computed
PARTS = ("gate", "up", "down")  # the matrices of an expert


@dataclass(frozen=True)
class Cut:
    """What a band takes of one tile."""

    tile: int  # of the group
    rows: slice
    columns: slice


@dataclass(frozen=True)
class Band:
    """Some rows of a matrix, all of the columns that are wanted."""

    rows: int
    columns: int
    cuts: tuple[Cut, ...]  # from left to right


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
    send: Send

    def __call__(self, tokens: Tokens) -> Tensor:
        """tokens (n, k) -> (n, m) float32."""
        return torch.cat([self._derived(band)(tokens) for band in self.bands], dim=1)

    def _derived(self, band: Band) -> Weight:
        return derive(self.recipe, self.send(rows_of(band, self.tiles)))


def bands_of(group: Group, part: str, piece: Slice = WHOLE) -> tuple[Band, ...]:
    """Return the bands of one of an expert's matrices, from its first row on.

    Of a slice: the rows of gate and up, the columns of down that belong to it.
    """
    name = f"{group.name}.{part}.weight"
    tiles = [tile for tile in group.tiles if tile.pieces[0].parameter == name]
    ends = max((t.pieces[0].row1, t.pieces[0].col1) for t in tiles)
    row, column = slice(0, ends[0]), slice(0, ends[1])
    if part == "down":
        column = slice(*piece.units(ends[1]))
    else:
        row = slice(*piece.units(ends[0]))
    by_row: dict[tuple[int, int], list[Cut]] = {}
    for tile in tiles:
        (stands,) = tile.pieces
        rows = _common(row, stands.row0, stands.row1)
        columns = _common(column, stands.col0, stands.col1)
        if rows.start < rows.stop and columns.start < columns.stop:
            cut = Cut(tile.index, rows, columns)
            by_row.setdefault((stands.row0, rows.stop - rows.start), []).append(cut)
    width = column.stop - column.start
    return tuple(Band(rows, width, tuple(cuts)) for (_, rows), cuts in by_row.items())


def _common(wanted: slice, start: int, stop: int) -> slice:
    """Return what of `wanted` lies in [start, stop), counted from `start`."""
    first = min(max(wanted.start, start), stop)
    return slice(first - start, max(first, min(wanted.stop, stop)) - start)


def rows_of(band: Band, tiles: Sequence[Tensor]) -> Tensor:
    """Return a band (b, k) as it is stored; a copy if several tiles make it."""
    made = [tiles[cut.tile][cut.rows, cut.columns] for cut in band.cuts]
    return made[0] if len(made) == 1 else torch.cat(made, dim=1)  # (b, k)


def hidden_units(group: Group) -> int:
    """Return how many hidden units the expert `group` has: the most slices there are."""
    return sum(band.rows for band in bands_of(group, "gate"))


def expert_bytes(group: Group, recipe: Recipe, piece: Slice = WHOLE) -> int:
    """Return what an expert, or a slice of it, takes when it is ready in `recipe`."""
    return sum(
        bytes_of(recipe, band.rows, band.columns)
        for part in PARTS
        for band in bands_of(group, part, piece)
    )


def ready_expert(
    group: Group,
    tiles: Sequence[Tensor],
    recipe: Recipe,
    send: Send,
    piece: Slice = WHOLE,
) -> Callable[[Tensor], Tensor]:
    """Return an expert made of its stored tiles; a mapping where it can be.

    A slice's output is that of its own hidden units: one summand of the expert's.
    """

    bands = [bands_of(group, part, piece) for part in PARTS]
    stored = [[send(rows_of(band, tiles)) for band in some] for some in bands]
    if recipe is Recipe.F32 and all(len(some) == 1 for some in stored):
        gate, up, down = (matrix.float() for (matrix,) in stored)
        return Expert(gate, up, down)
    weights: list[Weight] = []
    for some in stored:
        made = [derive(recipe, matrix) for matrix in some]
        weights.append(made[0] if len(made) == 1 else Banded(tuple(made)))
    return Gated(recipe, *weights)


def streamed_expert(
    group: Group,
    tiles: Sequence[Tensor],
    recipe: Recipe,
    send: Send,
    piece: Slice = WHOLE,
) -> Gated:
    """Return the same without ever holding more than a band of it."""

    def streamed(part: str) -> Streamed:
        return Streamed(recipe, bands_of(group, part, piece), tiles, send)

    return Gated(recipe, *(streamed(part) for part in PARTS))
