"""Proving a group's head: every update computed again, from the oldest version held.

Nothing is stored and nothing is believed: the first version's tiles are hashed, and each
update's result roots are compared with those that its deltas give (DEC-B1, B9).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from blyan_proto.block.block import Block
from blyan_proto.block.model import TileRoots, TileRootsList, TileUpdate, Weights
from blyan_proto.errors import ProtocolError
from blyan_tile import delta as deltas
from blyan_tile.layout import Group
from blyan_tile.tblock import root_of
from blyand.compute import Threads
from blyand.errors import NotHere, Pruned, Unavailable
from blyand.rules.records import RUNS
from blyand.rules.view import View
from blyand.store.blobs import BlobStore
from blyand.store.blocks import BlockStore
from blyand.training import tiles

MAX_UPDATES = 100_000

Report = Callable[[int, int], Awaitable[None]]  # done, total


@dataclass(frozen=True)
class Path:
    """Updates from a version that is here to a head, oldest first."""

    start: bytes  # the block that made the first version
    tiles: TileRootsList  # of the first version
    is_first: bool  # these are the first weights
    updates: Sequence[Block]


@dataclass(frozen=True)
class Made:
    """One version, and the block that made it."""

    block: Block
    tiles: TileRootsList
    is_here: bool  # its tiles are on this disk


class Proof:
    """Replays groups in memory."""

    def __init__(
        self,
        blocks: BlockStore,
        blobs: BlobStore,
        view: Callable[[], View],
        fetch: Callable[[bytes], Awaitable[None]],
        lane: Threads,
    ) -> None:
        self._blocks = blocks
        self._blobs = blobs
        self._view = view
        self._fetch = fetch
        self._lane = lane

    async def path_to(self, head: bytes, *, from_genesis: bool) -> Path:
        """Return the longest path to a head whose first version is here.

        NotHere when there is none. `from_genesis`: from the first weights, which are
        fetched; Unavailable when the way to them is pruned here.
        """
        path, reached_first = await self._lane.run(self._longest, head)
        if not from_genesis:
            if path is None:
                raise NotHere(
                    "no version of it is here from which it could be replayed"
                )
            return path
        if reached_first is None:
            raise Unavailable(
                "the payloads between its first weights and its snapshots are pruned here; "
                "ask a node with the role archive: `tile replay --from-genesis` there"
            )
        for tile in reached_first.tiles:
            await self._get(tile.weights)
        return reached_first

    def _longest(self, head: bytes) -> tuple[Path | None, Path | None]:
        """Return the longest path of which the start is here, and that from the start."""
        updates: list[Block] = []
        longest: Path | None = None
        at = head
        while len(updates) < MAX_UPDATES:
            try:
                block = self._blocks.get(at)
            except Pruned:
                break
            content = None if block is None else block.content
            if isinstance(content, Weights):
                first = Path(at, content.tiles, True, updates[::-1])
                return (first if self._is_here(content.tiles) else longest), first
            if block is None or not isinstance(content, TileUpdate):
                break
            updates.append(block)
            if self._is_here(content.base):
                longest = Path(content.parent, content.base, False, updates[::-1])
            at = content.parent
        return longest, None

    def _is_here(self, roots: TileRootsList) -> bool:
        every = (root for tile in roots for root in (tile.weights, tile.momentum))
        return all(root is None or self._blobs.has(root) for root in every)

    def is_behind(self, head: bytes, version: bytes) -> bool:
        """True when `version` made a version from which `head` came. Blocking.

        Pruned when the way back ends here before it can tell.
        """
        return any(block.id == version for block in self._back(head))

    def versions(self, head: bytes, limit: int) -> tuple[list[Made], bool]:
        """Return the versions from a head back, and whether a pruned one ended the list.

        Blocking; reads one block per version.
        """
        found: list[Made] = []
        try:
            for block in islice(self._back(head), limit):
                content = block.content
                is_first = isinstance(content, Weights)
                made = content.tiles if is_first else content.result
                found.append(Made(block, made, self._is_here(made)))
        except Pruned:
            return found, True
        return found, False

    def _back(self, head: bytes) -> Iterator[Block]:
        """Yield the blocks that made a group's versions, newest first. Pruned."""
        block = self._blocks.get(head)
        while block is not None and isinstance(block.content, TileUpdate):
            yield block
            block = self._blocks.get(block.content.parent)
        if block is not None and isinstance(block.content, Weights):
            yield block

    async def replay(self, path: Path, group: Group, report: Report) -> str | None:
        """Compute all updates of a path; return what did not follow, None if all did.

        Unavailable when deltas that an update lists are nowhere to be had.
        """
        for tile in path.tiles:
            for root in (tile.weights, tile.momentum):
                if root is not None and not await self._lane.run(
                    self._blobs.verify, root
                ):
                    return f"blob {root.hex()} of the first version is damaged"
        try:
            state = await self._lane.run(tiles.load, self._blobs, group, path.tiles)
        except ProtocolError as error:
            return f"the first version: {error}"
        base = path.tiles
        for count, block in enumerate(path.updates):
            update: TileUpdate = block.content
            if update.blob is not None:
                await self._get(update.blob)
            name = f"update {block.id.hex()} of round {update.round}"
            if update.base != base:
                return f"{name} has another base than the version before it"
            try:
                state = await self._lane.run(self._next, group, state, update)
            except ProtocolError as error:
                return f"{name}: {error}"
            if update.contributions:  # without any the base stands, in its own dtype
                base = await self._lane.run(_roots_of, state)
            if base != update.result:
                return f"{name} gives other roots than it names"
            await report(count + 1, len(path.updates))
        return None

    async def _get(self, root: bytes) -> None:
        try:
            await self._fetch(root)
        except NotHere as error:
            raise Unavailable(
                f"blob {root.hex()} is neither here nor at a connected peer; connect to a "
                "node with the role archive"
            ) from error

    def _next(
        self, group: Group, state: list[deltas.TileState], update: TileUpdate
    ) -> list[deltas.TileState]:
        record = RUNS.get(self._view(), update.run)
        if record is None:
            raise Unavailable("its run is not known here")
        parts = tiles.parts_of(self._blobs, update, group, record.run)
        return tiles.stepped(group, state, parts, record.run)


def _roots_of(state: list[deltas.TileState]) -> TileRootsList:
    return tuple(
        TileRoots(root_of(weights), None if momentum is None else root_of(momentum))
        for weights, momentum in state
    )
