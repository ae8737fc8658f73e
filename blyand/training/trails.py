"""Which versions of which groups are on this disk, and when their tiles may go.

Equal tiles share a blob, so tiles are counted, and `sweep` deletes what nothing needs.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from blyan_proto.block.model import TileRootsList
from blyan_proto.constants import VERSIONS_SERVED
from blyand.store.blobs import BlobStore

KEPT = 4  # versions behind the finalised head: for roll-back and late fetches

Key = tuple[bytes, int]  # model, group


@dataclass(frozen=True)
class Version:
    """One version of one group, and the block that made it."""

    block: bytes
    parent: bytes | None  # block of the version before; none for first weights
    run: bytes | None
    rounds: int  # rounds of `run` behind it
    tiles: TileRootsList
    median: int = 0  # running median norm of the run's deltas (DEC-B15)

    def median_in(self, run: bytes) -> int:
        """Return the running median that an update of `run` stands on."""
        return self.median if self.run == run else 0

    @property
    def roots(self) -> set[bytes]:
        """The blobs of weights and momentum."""
        weights = {tile.weights for tile in self.tiles}
        return weights | {tile.momentum for tile in self.tiles if tile.momentum}


class Trails:
    """The versions held of each group, oldest first, and its adopted weights."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._trails: dict[Key, list[Version]] = {}
        self._adopted: dict[Key, deque[set[bytes]]] = {}
        self._uses: Counter[bytes] = Counter()
        self._unused: set[bytes] = set()

    def find(self, key: Key, block: bytes) -> Version | None:
        """Return the version that `block` made, if it is held."""
        return next((v for v in self._trails.get(key, ()) if v.block == block), None)

    def append(self, key: Key, version: Version) -> None:
        """Hold a version whose tiles are on the disk."""
        if self.find(key, version.block) is None:
            self._trails.setdefault(key, []).append(version)
            self._uses.update(version.roots)

    def adopt(self, key: Key, weights: set[bytes]) -> None:
        """Keep the adopted weights, and the last few before them (DEC-B8)."""
        served = self._adopted.setdefault(key, deque())
        if not served or served[-1] != weights:
            served.append(weights)
            self._uses.update(weights)
            if len(served) > VERSIONS_SERVED:
                self._release(served.popleft())

    def uses(self, root: bytes) -> bool:
        """True while a version that is held stands on the blob. From any thread."""
        return root in self._uses

    def trim(self, key: Key, head: bytes, needed: Collection[bytes]) -> None:
        """Drop what roll-back does not need, nor anybody the versions `needed` (DEC-B9)."""
        trail = self._trails[key]
        place = next(i for i, version in enumerate(trail) if version.block == head)
        surplus = trail[: max(0, place - KEPT)]
        dropped = [version for version in surplus if version.block not in needed]
        self._trails[key] = [version for version in trail if version not in dropped]
        for version in dropped:
            self._release(version.roots)

    def forget(self, key: Key) -> None:
        """Let go of everything of a group."""
        for version in self._trails.pop(key, []):
            self._release(version.roots)
        for weights in self._adopted.pop(key, ()):
            self._release(weights)

    def renumber(self, key: Key, version: Version, like: Version) -> None:
        """Let a held version count as many rounds of a run as `like` says."""
        trail = self._trails[key]
        trail[trail.index(version)] = like

    def spare(self, roots: Iterable[bytes]) -> None:
        """Let these tiles go at the next sweep, if no version stands on them."""
        self._unused.update(roots)

    @property
    def has_unused(self) -> bool:
        """True when `sweep` would find something."""
        return bool(self._unused)

    def sweep(self) -> None:
        """Delete the tiles that nothing needs any more. Blocking: for a lane.

        Durable ones (snapshots, first weights) are retention's (DEC-B9).
        """
        while self._unused:
            root = self._unused.pop()
            if root not in self._uses:
                self._blobs.forget_derived(root)

    def _release(self, roots: set[bytes]) -> None:
        for root in roots:
            self._uses[root] -= 1
            if self._uses[root] <= 0:
                del self._uses[root]
                self._unused.add(root)
