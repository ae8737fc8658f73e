"""Which versions of its groups this node serves (DEC-B8).

Per group: the last adopted ones, a few recent trained heads, what a session of our own
has pinned, and what was asked for within the last minutes. Everything is bounded.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import trio

from blyan_proto.constants import VERSIONS_SERVED
from blyan_tile.layout import group_root
from blyand.errors import NotHere, StaleVersion
from blyand.rules.records import Group

TRAINED_SERVED = 8  # trained heads of a group, provisional ones included
LINGER_S = 600.0  # longest that a version in use outlives its place (DEC-B8)
LINGER_IDLE_S = 60.0  # in use: asked for within this time
MAX_LINGERING = 4  # of one group

Tiles = tuple[bytes, ...]  # roots of the weight tiles, in the layout's order


@dataclass
class _Version:
    tiles: Tiles
    used_s: float
    left_s: float = 0.0  # when it lost its place


@dataclass
class _Served:
    """The versions of one group, by root; oldest first."""

    adopted: OrderedDict[bytes, _Version] = field(default_factory=OrderedDict)
    trained: OrderedDict[bytes, _Version] = field(default_factory=OrderedDict)
    lingering: OrderedDict[bytes, _Version] = field(default_factory=OrderedDict)

    def find(self, root: bytes) -> _Version | None:
        for place in (self.adopted, self.trained, self.lingering):
            if root in place:
                return place[root]
        return None


class Versions:
    """Maps the root of a group's version to its tiles. Use it from the loop only."""

    def __init__(self, now_s: Callable[[], float] = trio.current_time) -> None:
        self._now_s = now_s
        self._groups: dict[tuple[bytes, int], _Served] = {}
        self._pinned: dict[bytes, tuple[Tiles, int]] = {}  # root: tiles, sessions

    def update(
        self, records: Iterable[Group], held: frozenset[int], model: bytes
    ) -> None:
        """Take over both finalised heads of the groups that this node holds.

        `records` are those of the model, held or not. Called after every finalised
        checkpoint; groups no longer held are forgotten.
        """
        for key in [k for k in self._groups if k[0] == model and k[1] not in held]:
            del self._groups[key]
        for record in records:
            if record.group in held:
                adopted = tuple(tile.weights for tile in record.adopted)
                self._put(model, record.group, adopted, adopted=True)
                self.offer(model, record.group, [tile.weights for tile in record.tiles])

    def offer(self, model: bytes, group: int, tiles: Sequence[bytes]) -> bytes:
        """Serve a trained head from now on, finalised or not; return its root."""
        return self._put(model, group, tuple(tiles), adopted=False)

    def find(self, model: bytes, group: int, root: bytes) -> Tiles:
        """Return the tiles of exactly this version.

        NotHere when the group is not held, StaleVersion when this version is not, or
        not yet, served.
        """
        here = self._groups.get((model, group))
        version = here.find(root) if here is not None else None
        if version is not None:
            version.used_s = self._now_s()
            return version.tiles
        if root in self._pinned:
            return self._pinned[root][0]
        if here is None:
            raise NotHere(f"group {group} is not held here")
        raise StaleVersion(f"version {root.hex()[:16]} of group {group} is not served")

    @contextmanager
    def pinned(self, versions: Iterable[tuple[bytes, Tiles]]) -> Iterator[None]:
        """Keep (root, tiles) pairs for as long as a session of our own needs them."""
        kept = list(versions)
        for root, tiles in kept:
            _, sessions = self._pinned.get(root, (tiles, 0))
            self._pinned[root] = (tiles, sessions + 1)
        try:
            yield
        finally:
            for root, tiles in kept:
                _, sessions = self._pinned.pop(root)
                if sessions > 1:
                    self._pinned[root] = (tiles, sessions - 1)

    def tiles_in_use(self) -> frozenset[bytes]:
        """Return the roots of all blobs that a served version needs."""
        used = {root for tiles, _ in self._pinned.values() for root in tiles}
        for group in self._groups.values():
            self._expire(group)
            for place in (group.adopted, group.trained, group.lingering):
                used.update(root for one in place.values() for root in one.tiles)
        return frozenset(used)

    def _put(self, model: bytes, number: int, tiles: Tiles, adopted: bool) -> bytes:
        group = self._groups.setdefault((model, number), _Served())
        place = group.adopted if adopted else group.trained
        newest = next(reversed(place), None)
        if newest is not None and place[newest].tiles == tiles:
            return newest  # the usual case, without hashing
        root = group_root(tiles)
        if root not in place:
            place[root] = _Version(tiles, -LINGER_S)
        place.move_to_end(root)
        limit = VERSIONS_SERVED if adopted else TRAINED_SERVED
        while len(place) > limit:
            left, version = place.popitem(last=False)
            version.left_s = self._now_s()
            group.lingering[left] = version
        self._expire(group)
        return root

    def _expire(self, group: _Served) -> None:
        if not group.lingering:
            return
        now_s = self._now_s()
        for root, version in list(group.lingering.items()):
            idle_s, out_s = now_s - version.used_s, now_s - version.left_s
            if idle_s > LINGER_IDLE_S or out_s > LINGER_S:
                del group.lingering[root]
        while len(group.lingering) > MAX_LINGERING:
            group.lingering.popitem(last=False)
