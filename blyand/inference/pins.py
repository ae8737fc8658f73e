"""A model at one finalised checkpoint, with what every request needs of it at hand."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from blyan_proto.block.model import Architecture
from blyan_proto.digest import Domain, digest
from blyan_tile.layout import Group, Layout, group_root
from blyand.errors import NotHere
from blyand.inference.versions import Tiles
from blyand.rules.model.heads import Pinned, Which, pin
from blyand.rules.model.model import layout_for
from blyand.rules.records import CLOCK
from blyand.rules.view import View

KEPT = 8  # pins remembered; each is a few kB per hundred groups


@dataclass(frozen=True)
class Heads:
    """The versions of all groups that one session computes with (DEC-B8)."""

    pinned: Pinned
    layout: Layout

    @property
    def model(self) -> bytes:
        """The model's block id."""
        return self.pinned.id

    @property
    def height(self) -> int:
        """Height of the checkpoint."""
        return self.pinned.height

    @property
    def architecture(self) -> Architecture:
        return self.pinned.model.architecture

    @cached_property
    def tiles(self) -> tuple[Tiles, ...]:
        """Roots of the weight tiles of each group."""
        return tuple(tuple(self.pinned.weights(g.index)) for g in self.layout.groups)

    @cached_property
    def roots(self) -> tuple[bytes, ...]:
        """The name of each group's version on the wire."""
        return tuple(group_root(tiles) for tiles in self.tiles)

    @cached_property
    def version(self) -> bytes:
        """A name for the versions of all groups together."""
        return digest(Domain.MODEL, *self.roots)

    @cached_property
    def trunk(self) -> bytes:
        """A name for the versions of everything but the experts."""
        shared = self.layout.shared_groups
        return digest(Domain.MODEL, *(self.roots[group.index] for group in shared))

    @cached_property
    def _experts(self) -> dict[tuple[int | None, int | None], Group]:
        return {(g.layer, g.expert): g for g in self.layout.expert_groups}

    def expert(self, layer: int, expert: int) -> Group:
        """Return the group of one expert."""
        return self._experts[layer, expert]


def heads_of(pinned: Pinned) -> Heads:
    """Return a pinned model with its layout."""
    return Heads(pinned, layout_for(pinned.model))


class Pins:
    """Pins models at the newest finalised state. Use it from the loop only."""

    def __init__(self, view: Callable[[], View]) -> None:
        self._view = view
        self._known: OrderedDict[tuple[bytes, Which, int], Heads] = OrderedDict()

    def newest(self, model: bytes, which: Which = Which.ADOPTED) -> Heads:
        """Return the model's heads now. NotHere when it has no weights yet."""
        view = self._view()
        clock = CLOCK.get(view)
        key = (model, which, clock.height if clock else 0)
        if key not in self._known:
            pinned = pin(view, model, which)
            if pinned is None:
                raise NotHere(f"model {model.hex()[:16]} has no weights yet")
            self._known[key] = heads_of(pinned)
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
        return self._known[key]

    def is_newer(self, heads: Heads, which: Which = Which.ADOPTED) -> bool:
        """True when the finalised heads are no longer those of `heads`."""
        return self.newest(heads.model, which).roots != heads.roots
