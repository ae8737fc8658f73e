"""Recipes: how the weights of an expert are held for computing (DEC-B2).

A recipe is a deterministic derivation of the stored tiles. What it makes is a local copy,
never part of a root: (root, recipe) names it. docs/decisions/0023-recipes.md
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from blyan_tile.model.expert import silu
from blyan_tile.model.linear import linear, packed
from blyan_tile.quantised import (
    Tokens,
    bytes_of_int4,
    bytes_of_int8,
    int4_of,
    int8_of,
    quantised,
)


class Recipe(enum.IntEnum):
    """From the most exact to the smallest; the numbers are those of `Numerics`."""

    F32 = 0  # as stored, widened to float32
    BF16 = 1
    INT8 = 2  # a scale per row
    INT4 = 3  # a factor per 64 columns and a scale per row

    @property
    def label(self) -> str:
        """Its name in options and answers."""
        return self.name.lower()


def recipe_called(label: str) -> Recipe:
    """Return a recipe by its label; KeyError for another word."""
    return {recipe.label: recipe for recipe in Recipe}[label]


def recipe_for(preferred: Recipe, numerics: int) -> Recipe:
    """Return the recipe for a call: as small as preferred, as exact as `numerics` asks."""
    return Recipe(min(preferred, numerics))


class Weight(Protocol):
    """A matrix (m, k) in some recipe."""

    def __call__(self, tokens: Tokens) -> Tensor:
        """tokens (n, k) of the same recipe -> (n, m) float32."""
        ...


@dataclass
class Floats:
    """A matrix of floats; from the second use on a packed copy in place of it."""

    matrix: Tensor  # (m, k) float32 or bfloat16
    uses: int = 0

    def __call__(self, tokens: Tokens) -> Tensor:
        """tokens (n, k) -> (n, m) float32. In any thread."""
        self.uses += 1
        if self.uses == 2:
            self.matrix = packed(self.matrix)
        return linear(tokens.values, self.matrix).float()


@dataclass(frozen=True)
class Gated:
    """One SwiGLU expert, its matrices in one recipe; a row ignores its batch-mates."""

    recipe: Recipe
    gate: Weight  # (h, d)
    up: Weight  # (h, d)
    down: Weight  # (d, h)

    def __call__(self, x: Tensor) -> Tensor:
        """x (n, d) float32 -> (n, d) float32."""
        tokens = tokens_of(self.recipe, x)
        inner = silu(self.gate(tokens)) * self.up(tokens)  # (n, h)
        return self.down(tokens_of(self.recipe, inner))  # (n, d)


def tokens_of(recipe: Recipe, x: Tensor) -> Tokens:
    """Return activations (n, k) float32 as `recipe` multiplies them."""
    if recipe >= Recipe.INT8:
        return quantised(x)
    return Tokens(x.to(_dtype(recipe)))


def derive(recipe: Recipe, matrix: Tensor) -> Weight:
    """Return a stored matrix (m, k), or some of its rows, in `recipe`.

    Rows are derived one by one: some rows of it are the same rows of the whole. A
    matrix that is as the recipe wants it is not copied.
    """
    if recipe is Recipe.INT8:
        return int8_of(matrix)
    if recipe is Recipe.INT4:
        return int4_of(matrix)
    return Floats(matrix.to(_dtype(recipe)))


def bytes_of(recipe: Recipe, rows: int, columns: int) -> int:
    """Return what a matrix takes in `recipe`."""
    if recipe is Recipe.INT8:
        return bytes_of_int8(rows, columns)
    if recipe is Recipe.INT4:
        return bytes_of_int4(rows, columns)
    return _dtype(recipe).itemsize * rows * columns


def _dtype(recipe: Recipe) -> torch.dtype:
    return torch.float32 if recipe is Recipe.F32 else torch.bfloat16
