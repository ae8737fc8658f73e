"""One whole version of a model, as a request or an evaluation pins it (DEC-B8)."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from blyan_proto.block.model import Model, TileRootsList
from blyan_tile.layout import group_root
from blyand.rules.records import CLOCK, GROUPS, MODELS
from blyand.rules.view import View


class Which(enum.Enum):
    """The two heads of every group."""

    ADOPTED = "adopted"  # what inference answers with
    TRAINED = "trained"  # moves each round


@dataclass(frozen=True)
class Pinned:
    """A model at one checkpoint: the tiles of every group, in group order."""

    id: bytes
    model: Model
    height: int
    tiles: tuple[TileRootsList, ...]

    def weights(self, group: int) -> list[bytes]:
        """Return the roots of a group's weight tiles, in the layout's order."""
        return [tile.weights for tile in self.tiles[group]]

    def root(self, group: int) -> bytes:
        """Return the name of a group's version on the wire."""
        return group_root(self.weights(group))


def pin(view: View, model: bytes, which: Which) -> Pinned | None:
    """Return the model's heads as the view has them; None until all groups have weights."""
    record = MODELS.get(view, model)
    clock = CLOCK.get(view)
    if record is None or clock is None or record.weights < record.groups:
        return None
    groups = list(GROUPS.scan(view, model))
    tiles = (g.adopted if which is Which.ADOPTED else g.tiles for g in groups)
    return Pinned(record.id, record.model, clock.height, tuple(tiles))
