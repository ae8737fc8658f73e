"""The history below the state that a node began with, from there downwards, at a limited
rate: first the checkpoints, which say where every block was ordered, then the blocks.

Nobody is believed: a checkpoint is led to by the one above it and signed by its set, a
block is named by its checkpoint. Payloads past their retention come only where something
needs them, or to an archive; of the others the headers do. Goes on after a kill.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import trio

from blyan_proto.checkpoint import FinalCheckpoint
from blyan_proto.codec import encode
from blyan_proto.errors import BadSignature, ProtocolError
from blyan_proto.genesis import Genesis
from blyan_proto.protocols.blocks import MAX_IDS
from blyan_proto.protocols.sync import Checkpoints
from blyan_proto.validators import ValidatorSet
from blyand.compute import Threads
from blyand.errors import TooSlow, Unavailable
from blyand.joining import piece
from blyand.joining.piece import Piece
from blyand.rules.chain.intake import check_final
from blyand.rules.chain.retention import is_past
from blyand.rules.chain.trust import Pin
from blyand.rules.verdict import Reject
from blyand.store.blocks import BlockStore
from blyand.store.checkpoints import CheckpointStore
from blyand.store.history import History
from blyand.store.sets import SetStore

logger = logging.getLogger(__name__)

AT_ONCE = 64  # checkpoints of one exchange
AGAIN_S = 2.0  # after nobody gave what is missing
PATIENCE_S = 15.0  # for one answer
LOOK_S = 1.0  # whether there is something to do
HEAD_START_S = 60.0  # at most, of what is needed to serve
CALM = 3  # looks in a row at which no blob was under way
RATES = 20  # steps over which the rate is taken

Fill = Callable[[str | None], Awaitable[bool]]


class Asking(piece.Asking, Protocol):
    """What backfilling asks of a peer."""

    async def before(self, peer: str, height: int, count: int) -> Checkpoints: ...

    async def validators(self, peer: str, root: bytes) -> ValidatorSet: ...


@dataclass(frozen=True)
class Disk:
    """Where history goes. Blocking."""

    history: History
    checkpoints: CheckpointStore
    blocks: BlockStore
    sets: SetStore


class Backfill:
    """Fills in what lies below, while there is something missing."""

    def __init__(
        self,
        genesis: Genesis,
        disk: Disk,
        asking: Asking,
        peers: Callable[[], Sequence[str]],
        blame: Callable[[str, Exception], None],
        lane: Threads,
        now_ms: Callable[[], int],
        rate: int,
        *,
        archives: bool,
        pin: Pin | None,
        ordered: Callable[[Sequence[bytes]], None],
        whole: Callable[[], None],
        is_busy: Callable[[], bool] = lambda: False,
    ) -> None:
        """`now_ms` is chain time; `rate` bytes a second, 0 for none; `ordered` hears of
        blocks that were ordered long ago; `whole`, blocking, that nothing is missing;
        `is_busy()` while blobs are fetched, which go first.
        """
        self._genesis, self._disk, self._asking = genesis, disk, asking
        self._peers, self._blame, self._lane = peers, blame, lane
        self._now_ms, self._rate = now_ms, rate
        self._archives, self._pin = archives, pin
        self._ordered, self._whole, self._is_busy = ordered, whole, is_busy
        self._turn = self._owed = 0
        self._piece: Piece | None = None
        self._share: dict[str, int] = {}  # peer -> by what it is asked for less
        self._done: deque[tuple[float, int]] = deque(maxlen=RATES)
        self.blocks = self.bytes = 0  # fetched so far
        self.trouble = ""

    @property
    def left_s(self) -> float | None:
        """How long the rest may take; None while unknown."""
        if len(self._done) < 2:
            return None
        (began_s, first), (now_s, last) = self._done[0], self._done[-1]
        floor = self._disk.history.floor
        left = floor.checkpoints + floor.blocks - 2
        return left * (now_s - began_s) / (first - last) if first > last else None

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Fill in for ever: a node may join again later."""
        task_status.started()
        while True:
            was_whole = self._disk.history.is_whole
            if not was_whole:
                await self._give_way()
            while not self._disk.history.is_whole:
                if not await self._step():
                    await trio.sleep(AGAIN_S)
                floor = self._disk.history.floor
                left = floor.checkpoints + floor.blocks
                self._done.append((trio.current_time(), left))
            if not was_whole:
                self.trouble = ""
                logger.info("history is here down to the first checkpoint")
                await self._lane.run(self._whole)
            await trio.sleep(LOOK_S)

    async def _give_way(self) -> None:
        """Let what this node needs to serve come first, for a while."""
        calm = 0
        with trio.move_on_after(HEAD_START_S):
            while calm < CALM:
                calm = 0 if self._is_busy() else calm + 1
                await trio.sleep(LOOK_S)

    async def _step(self) -> bool:
        """Bring in the next piece; False when no peer gave it."""
        floor = self._disk.history.floor
        fill = self._checkpoints if floor.checkpoints > 1 else self._blocks_below
        if await fill(None):
            return True
        peers = list(self._peers())
        self._share = {p: share for p, share in self._share.items() if p in peers}
        had = self.bytes
        for _ in peers:
            peer = peers[self._turn % len(peers)]
            is_done = await self._ask(fill, peer)
            await self._rest()
            if is_done:
                self.trouble = ""
                return True
            self._turn += 1
        lowest = floor.checkpoints if floor.checkpoints > 1 else floor.blocks
        no_one = f"no connected peer gives what lies below checkpoint {lowest}"
        self.trouble = no_one if self.bytes == had else ""
        return False

    async def _ask(self, fill: Fill, peer: str) -> bool:
        """Give a peer its turn; True when it brought the next piece to its end.

        One that brings nothing in time may be slow, or far away: it is asked for less.
        """
        had, share = self.bytes, self._share.get(peer, 1)
        try:
            with trio.move_on_after(PATIENCE_S):
                came = await fill(peer)
                self._share[peer] = max(1, share // 2)
                return came
            raise TooSlow(f"{peer} took more than {PATIENCE_S:g} s")
        except TooSlow as error:
            logger.info("history comes slowly: %s", error)
            if self.bytes == had:
                self._share[peer] = min(2 * share, MAX_IDS)
        except Unavailable as error:
            logger.debug("%s gives no history: %s", peer, error)
        except (ProtocolError, Reject) as error:
            logger.info("%s gives a false history: %s", peer, error)
            if isinstance(error, (Reject, BadSignature)):
                self._blame(peer, error)  # others are blamed where they came in
        return False

    async def _rest(self) -> None:
        """Wait as long as the rate asks for what came."""
        owed, self._owed = self._owed, 0
        if self._rate:
            await trio.sleep(owed / self._rate)

    # Checkpoints

    async def _checkpoints(self, peer: str | None) -> bool:
        """Bring in the checkpoints below the floor; of this disk without a peer."""
        height = self._disk.history.floor.checkpoints
        if peer is None:
            finals = await self._lane.run(self._here, height)
        else:
            count = max(1, AT_ONCE // self._share.get(peer, 1))
            shown = await self._asking.before(peer, height, count)
            finals = list(shown.checkpoints)
            if not finals or finals[-1].checkpoint.height != height - 1:
                return False  # it has no more itself
        above = await self._lane.run(self._disk.checkpoints.at, height)
        assert above is not None
        linked: list[FinalCheckpoint] = []
        for final in reversed(finals):
            await self._check(peer, final, above)
            linked.append(final)
            above = final
        await self._lane.run(self._disk.history.put, linked)
        for final in linked:
            self._ordered(final.checkpoint.blocks)
        if peer is not None:
            self._count(linked)
        return bool(linked)

    def _here(self, height: int) -> list[FinalCheckpoint]:
        """Return checkpoints right below `height` that are on the disk, ascending."""
        found: list[FinalCheckpoint] = []
        while len(found) < AT_ONCE:
            final = self._disk.checkpoints.at(height - 1 - len(found))
            if final is None:
                break
            found.append(final)
        return found[::-1]

    async def _check(
        self, peer: str | None, final: FinalCheckpoint, above: FinalCheckpoint
    ) -> None:
        """Raise Reject unless `above` leads to this checkpoint, and its set signed it."""
        checkpoint = final.checkpoint
        if above.checkpoint.parent != checkpoint.id:
            raise Reject("a checkpoint that does not lead to the one above it")
        pin = self._pin
        if pin is not None and pin.height == checkpoint.height:
            if pin.id != checkpoint.id:
                logger.error("alarm: history does not lead to the pin %s", pin)
        if checkpoint.height == 1 and checkpoint.parent != self._genesis.id:
            raise Reject("a first checkpoint of another genesis")
        root = checkpoint.validators_root
        signers = await self._lane.run(self._set, root)
        if signers is None:
            if peer is None:
                raise Reject("a set that is unknown here")
            signers = await self._asking.validators(peer, root)
            await self._lane.run(self._disk.sets.keep, signers)
        await self._lane.run(check_final, final, self._genesis, signers)

    def _set(self, root: bytes) -> ValidatorSet | None:
        founders = self._genesis.founders
        return founders if root == founders.root else self._disk.sets.at(root)

    # Blocks

    async def _blocks_below(self, peer: str | None) -> bool:
        """Bring in the blocks of the next checkpoints below; those here without a peer."""
        finals = await self._lane.run(self._next)
        missing = await self._lane.run(self._missing, finals)
        coming = self._coming(finals[0].checkpoint.height)
        if peer is not None:
            at_once = max(1, MAX_IDS // self._share.get(peer, 1))
            await coming.fetch(peer, missing, at_once)
        if coming.lacks(missing):
            return False
        await self._lane.run(
            self._disk.history.put_blocks,
            finals[-1].checkpoint.height,
            list(coming.whole.values()),
            coming.headers,
            self._now_ms(),
        )
        self._piece = None
        self.blocks += len(missing)
        return True

    def _coming(self, height: int) -> Piece:
        """Return what came so far of the blocks from that height downwards."""
        if self._piece is None or self._piece.height != height:
            self._piece = Piece(
                height,
                self._genesis,
                self._asking,
                self._lane,
                self._count,
                archives=self._archives,
            )
        return self._piece

    def _next(self) -> list[FinalCheckpoint]:
        """Return the next checkpoints below, descending, as many as one request asks."""
        found: list[FinalCheckpoint] = []
        height, count = self._disk.history.floor.blocks - 1, 0
        while height > 0 and len(found) < AT_ONCE and count < MAX_IDS:
            final = self._disk.checkpoints.at(height)
            assert final is not None
            found.append(final)
            count += len(final.checkpoint.blocks)
            height -= 1
        return found

    def _missing(self, finals: Sequence[FinalCheckpoint]) -> dict[bytes, bool]:
        """Return the blocks that are not here, or whose payload an archive lacks, with
        whether their payload is past retention."""
        blocks, now_ms = self._disk.blocks, self._now_ms()
        has = blocks.is_whole if self._archives else blocks.has
        span_ms = self._genesis.parameters.retention_span_ms
        return {
            id: not self._archives and is_past(one.checkpoint.time_ms, now_ms, span_ms)
            for one in finals
            for id in one.checkpoint.blocks
            if not has(id)
        }

    def _count(self, given: Sequence[Any]) -> None:
        size = sum(len(encode(one)) for one in given)
        self.bytes += size
        self._owed += size
