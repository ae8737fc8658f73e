"""Pending blocks: stored, not yet ordered by a checkpoint (DEC-A1).

Bounds: blocks of one author (Ignore), and blocks and bytes of all. A block that can be
ordered leaves within a checkpoint or two, so when the pool is full the oldest goes:
most likely it waits for something that never comes. Its author announces it again.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

from blyan_proto.block import data, model
from blyan_proto.block.block import Block
from blyan_proto.block.payload import KINDS
from blyan_proto.constants import MIB
from blyan_proto.genesis import Parameters
from blyan_proto.types import CHAIN_ORDER
from blyand.rules.chain.intake import MAX_PENDING_PER_AUTHOR
from blyand.rules.chain.limits import Load, size_of
from blyand.rules.chain.order import is_before, references
from blyand.rules.chain.reconcile import IdSet
from blyand.rules.verdict import Ignore

MAX_BLOCKS = 16_384
MAX_BYTES = 128 * MIB

Key = tuple[int, int, int, bytes]  # place of the chain, height, sequence, id

WITH_BLOBS = {
    kind.code
    for kind in KINDS.values()
    if kind.payload in (model.Model, model.Weights, model.TileUpdate, data.Dataset)
}


@dataclass
class Pending:
    """One block that waits."""

    block: Block
    id: bytes
    keep: bool  # our own: never evicted
    parents: set[bytes]  # those not known to be ordered
    references: set[bytes]  # likewise
    anchor_ms: int | None = None  # chain time of its anchor, once looked up

    @property
    def key(self) -> Key:
        header = self.block.header
        place = CHAIN_ORDER.index(header.chain)
        return (place, header.height, header.sequence, self.id)

    @property
    def bytes(self) -> int:
        return size_of(self.block)


class Pool:
    """The blocks that a checkpoint may take, by id."""

    def __init__(self) -> None:
        self.ids = IdSet()  # to compare with a peer's
        self._pending: dict[bytes, Pending] = {}  # oldest first
        self._keys: list[Key] = []  # sorted: parents before children
        self._by_author: dict[bytes, dict[bytes, Block]] = {}
        self._bytes = 0
        self._kept = 0  # how many of them are our own
        self._chosen: set[bytes] = set()  # by the last `ready`: about to be ordered
        self._dropped: list[bytes] = []

    def __len__(self) -> int:
        return len(self._pending)

    def __iter__(self) -> Iterator[Block]:
        return iter([pending.block for pending in self._pending.values()])

    def __contains__(self, id: bytes) -> bool:
        return id in self._pending

    @property
    def size_bytes(self) -> int:
        """What the blocks count against the bound."""
        return self._bytes

    def get(self, id: bytes) -> Block | None:
        """Return a pending block, None when it is not here."""
        pending = self._pending.get(id)
        return None if pending is None else pending.block

    def entries(self) -> Iterable[Pending]:
        """Return the blocks with what is known about their waiting, oldest first."""
        return list(self._pending.values())

    def check_room(self, author: bytes, coming: int = 0) -> None:
        """Raise Ignore when this key, with `coming` more, has its share pending.

        A share is a key's, not an account's: anybody can name anybody's account.
        """
        mine = len(self._by_author.get(author, ())) + coming
        if mine >= MAX_PENDING_PER_AUTHOR:
            raise Ignore("the author has too many blocks that no checkpoint took")

    def add(self, block: Block, *, keep: bool = False) -> None:
        """Take a block in; `keep`: it is our own. What is too much goes, oldest first."""
        id = block.id
        if id in self._pending:
            return
        pending = Pending(
            block, id, keep, set(block.header.parents), set(references(block))
        )
        self._pending[id] = pending
        self.ids.add(id)
        insort(self._keys, pending.key)
        self._by_author.setdefault(block.header.author, {})[id] = block
        self._bytes += pending.bytes
        self._kept += keep
        is_full = len(self._pending) > MAX_BLOCKS or self._bytes > MAX_BYTES
        if is_full and self._kept < len(self._pending):
            self.drop(self._oldest())

    def remove(self, id: bytes) -> None:
        """Forget a block that a checkpoint ordered, or that cannot be executed here."""
        pending = self._pending.pop(id, None)
        if pending is None:
            return
        self.ids.remove(id)
        del self._keys[bisect_left(self._keys, pending.key)]
        author = pending.block.header.author
        del self._by_author[author][id]
        if not self._by_author[author]:
            del self._by_author[author]
        self._bytes -= pending.bytes
        self._kept -= pending.keep

    def drop(self, ids: Iterable[bytes]) -> None:
        """Give up blocks and, as they can never be ordered without them, their children.

        A block that this validator just chose stays. `take_dropped` names what went.
        """
        gone = {id for id in ids if id in self._pending} - self._chosen
        for _, _, _, id in list(self._keys) if gone else ():
            if gone & self._pending[id].parents and id not in self._chosen:
                gone.add(id)
        for id in gone:
            self.remove(id)
        self._dropped += gone

    def take_dropped(self) -> list[bytes]:
        """Return what was dropped since the last call: it may leave the disk, too."""
        dropped, self._dropped = self._dropped, []
        return [id for id in dropped if id not in self._pending]

    def of(self, author: bytes) -> list[Block]:
        """Return the pending blocks that a key signed, by ascending sequence."""
        own = self._by_author.get(author, {}).values()
        return sorted(own, key=lambda block: block.header.sequence)

    def newest_of(
        self, author: bytes, chain: int, without: Collection[bytes] = ()
    ) -> Block | None:
        """Return a key's pending block with the highest sequence on a chain.

        Not one that stands on a block of `without`, directly or over others of its own.
        """
        newest, dead = None, set(without)
        for block in self.of(author):
            if block.header.chain == chain:
                if block.id in dead or not dead.isdisjoint(block.header.parents):
                    dead.add(block.id)
                else:
                    newest = block
        return newest

    def ready(
        self,
        is_ordered: Callable[[bytes], bool],
        is_available: Callable[[Block], bool],
        limits: Parameters,
    ) -> list[Block]:
        """Return the blocks that the next checkpoint may order, within the limits.

        A block is ready when its blobs are available, its parents are ordered or ready,
        and its references are ordered, or ready on a chain that is executed before its
        own (DEC-A3, A4). `is_available` is asked only about blocks of which nothing
        else is unknown.
        """
        taken: dict[bytes, Block] = {}
        stale: list[bytes] = []
        load = Load()
        for _, _, _, id in self._keys:
            pending = self._pending[id]
            waits = self._waits(pending, is_ordered)
            if waits is None or not is_available(pending.block):
                continue
            if not all(_is_early(taken.get(one), pending, one) for one in waits):
                continue
            if is_ordered(id):  # it came in again while a checkpoint took it
                stale.append(id)
                continue
            if not load.take(pending.block, limits):
                break
            taken[id] = pending.block
        self._chosen = set(taken)
        for id in stale:
            self.remove(id)
        return list(taken.values())

    def _waits(
        self, pending: Pending, is_ordered: Callable[[bytes], bool]
    ) -> set[bytes] | None:
        """Return the pending blocks that one waits for; None: for one unknown here."""
        for waited in (pending.parents, pending.references):
            for id in [one for one in waited if one not in self._pending]:
                if not is_ordered(id):
                    return None
                waited.discard(id)
        return pending.parents | pending.references

    def _oldest(self) -> list[bytes]:
        """Return what has to go for an eighth of the bounds to be free again."""
        count = len(self._pending) - MAX_BLOCKS * 7 // 8
        size = self._bytes - MAX_BYTES * 7 // 8
        oldest: list[bytes] = []
        for pending in self._pending.values():
            if len(oldest) >= count and size <= 0:
                break
            if not pending.keep and pending.id not in self._chosen:
                oldest.append(pending.id)
                size -= pending.bytes
        return oldest


def blobs_of(block: Block) -> list[bytes]:
    """Return the blobs without which a block is not orderable (DEC-A4)."""
    if block.header.kind not in WITH_BLOBS:
        return []  # without decoding it
    content = block.content
    if isinstance(content, model.Weights):
        return [tile.weights for tile in content.tiles]
    if isinstance(content, model.TileUpdate):
        return [content.blob] if content.blob else []
    if isinstance(content, model.Model):
        return [content.companions] if content.companions else []
    return [content.blob]


def _is_early(taken: Block | None, pending: Pending, id: bytes) -> bool:
    """True when a block taken into the same checkpoint is executed early enough."""
    is_parent = id in pending.parents and id not in pending.references
    return taken is not None and is_before(taken, pending.block, is_parent=is_parent)
