"""Slices of an expert: what one peer computes of an expert that is too large for it.

A slice is a run of the expert's hidden units: rows of gate and up, columns of down. It
gives a sum over its own units for every output, so the slices' outputs, added in the
order of the slices, are the expert's (DEC-S1, GPU-04, GPU-05). Which units a slice has
follows from its number and from how many there are; with the version's root that names
what is computed. docs/decisions/0023-recipes.md says why this cut.

Letters: n tokens, d width, h hidden units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Slice:
    """Number `index` of `count`."""

    index: int = 0
    count: int = 1

    def units(self, hidden: int) -> tuple[int, int]:
        """Return the first of its hidden units, and the one behind its last."""
        return (
            self.index * hidden // self.count,
            (self.index + 1) * hidden // self.count,
        )

    def name(self, group: str) -> str:
        """Return what it is called: layer0.expert0#1/4; a whole expert as its group."""
        return group if self.count == 1 else f"{group}#{self.index}/{self.count}"


WHOLE = Slice()


def slices(size: int, limit: int, most: int) -> tuple[Slice, ...]:
    """Return the slices of an expert of `size` bytes, none above `limit` if possible.

    At most `most` of them; a limit of 0 cuts nothing.
    """
    count = min(most, -(-size // limit)) if limit else 1
    return tuple(Slice(index, count) for index in range(max(1, count)))


def summed(outputs: Sequence[np.ndarray]) -> np.ndarray:
    """Return the sum of all slices' outputs (n, d), added in the order of the slices."""
    total = outputs[0].copy()  # (n, d)
    for output in outputs[1:]:
        total += output
    return total
