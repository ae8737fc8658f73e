"""Following finalised checkpoints: by gossip while we keep up, by sync when we do not.

Checkpoints come first: they name their blocks, so `gather` can fetch those of many at
once, of several peers (`swarm`). This file applies checkpoints one after the other.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import trio

from blyan_proto.block.block import Block
from blyan_proto.checkpoint import MAX_FINAL_CHECKPOINT_BYTES, FinalCheckpoint
from blyan_proto.codec import decode
from blyan_proto.errors import ProtocolError
from blyan_proto.genesis import Genesis
from blyan_proto.validators import ValidatorSet
from blyand.chain.expiry import Expiry
from blyand.chain.gather import Gatherer, Missing
from blyand.chain.intake import Intake
from blyand.chain.levelling import Levelling
from blyand.chain.machine import Machine
from blyand.chain.pool import Pool
from blyand.chain.swarm import Remote, Swarm
from blyand.compute import Threads
from blyand.errors import Halted, Pruned, TooSlow, Unavailable
from blyand.net.gossip import Verdict
from blyand.rules.chain.intake import check_final
from blyand.rules.chain.validators import signers, successors
from blyand.rules.verdict import Ignore, Reject
from blyand.store.blocks import BlockStore

logger = logging.getLogger(__name__)

POLL_S = 2.0  # how often a peer is asked for what gossip may have lost
PATIENCE_S = 10.0  # how long one answer may take before another peer is asked
MAX_WAITING = 256  # checkpoints ahead of ours kept in memory

T = TypeVar("T")
Compare = Callable[[FinalCheckpoint | None, FinalCheckpoint], Awaitable[None]]
Sets = tuple[
    int, ValidatorSet, ValidatorSet
]  # our height; of the next, of the one after


class Follower:
    """Applies checkpoints in order as they and their blocks become available."""

    def __init__(
        self,
        genesis: Genesis,
        machine: Machine,
        blocks: BlockStore,
        pool: Pool,
        intake: Intake,
        lane: Threads,
        remote: Remote,
        swarm: Swarm,
    ) -> None:
        self._genesis = genesis
        self._machine = machine
        self._blocks = blocks
        self._pool = pool
        self._lane = lane
        self._remote = remote
        self.swarm = swarm
        self.compare: Compare = _nothing  # a final checkpoint with another one
        self.held = False  # follow nothing: this node is about to join by a state
        self._waiting: dict[int, tuple[FinalCheckpoint, str]] = {}
        self._wake = trio.Event()  # there may be something to apply
        self._ask = trio.Event()  # there may be something to fetch
        self._got_news = False  # the peer asked last had newer checkpoints
        self._asked: dict[str, float] = {}  # peer -> when, or when it may be again
        self._claims: dict[str, int] = {}  # peer -> the height it says it has
        self._level: set[str] = set()  # peers that had nothing newer than we
        self._levelling_calls = 0  # who wait for all of them
        self._expiry = Expiry(machine, blocks, pool, lane)
        self._gatherer = Gatherer(
            blocks,
            pool,
            intake,
            lane,
            swarm,
            lambda: machine.clock.height,
            self._waiting.get,
            lambda: self._wake.set(),
        )
        self._levelling = Levelling(
            blocks,
            pool,
            intake,
            swarm,
            remote,
            lambda: self.known > machine.clock.height + 1 or not self._gatherer.is_idle,
            self._is_level_with,
        )

    @property
    def known(self) -> int:
        """The highest height that we have seen signed, or that most peers ahead claim."""
        height = self._machine.clock.height
        ahead = sorted(h for h in self._claims.values() if h > height) or [height]
        return max([height, ahead[(len(ahead) - 1) // 2], *self._waiting])

    @property
    def behind(self) -> int:
        """How many checkpoints we know of and have not applied."""
        if self.held:
            return max(2, self.known - self._machine.clock.height)
        return max(self._waiting, default=0) - self._machine.clock.height

    @property
    def stuck(self) -> bytes | None:
        """The block that the next checkpoint needs and no connected peer gives."""
        return self._gatherer.stuck

    async def level(self, *, patient: bool = True) -> None:
        """Return once every connected peer, and at least one, has shown all that it has.

        Not `patient`: peers that do not answer do not count.
        """
        self._level.clear()
        self._levelling.compared.clear()
        self._levelling_calls += 1
        self._levelling.hurry = True
        try:
            while not self._is_level(patient):
                self._ask.set()
                await trio.sleep(POLL_S / 10)
        finally:
            self._levelling_calls -= 1
            self._levelling.hurry = bool(self._levelling_calls)

    def _is_level(self, patient: bool) -> bool:
        peers, now = set(self._remote.peers()), trio.current_time()
        if not patient:
            peers = {p for p in peers if self._asked.get(p, 0.0) <= now}
            peers = {p for p in peers if not self._levelling.rests(p)}
        return bool(peers) and peers <= self._level & self._levelling.compared

    def hold(self, held: bool) -> None:
        """Follow no checkpoint while held; then go on from where the machine is."""
        if self.held and not held:
            self._gatherer.restart()
            self._wake.set()
            self._ask.set()
        self.held = held

    async def gossip_check(self, peer: str, raw: bytes) -> Verdict:
        """Say whether a gossiped checkpoint is forwarded, and keep it when it is.

        Raises ProtocolError or Reject for what the forwarder should have refused.
        """
        if self.held:
            return Verdict.IGNORE
        try:
            final = await self._lane.run(_decoded, raw)
            height = final.checkpoint.height
            if height <= self._machine.clock.height or height in self._waiting:
                await self.compare(self._waiting.get(height, (None, ""))[0], final)
                return Verdict.IGNORE
            is_final = await self._lane.run(self._check, final, self._sets())
        except (ProtocolError, Reject) as error:
            logger.info("refused a checkpoint of %s: %s", peer, error)
            raise
        if not is_final:
            self.peer_is_at(peer, height)
            return Verdict.IGNORE
        self._keep(final, peer)
        return Verdict.ACCEPT

    async def take(self, final: FinalCheckpoint, peer: str = "") -> None:
        """Take in a checkpoint that a validator decided or showed; Reject if it is none.

        `peer` "": this node decided it.
        """
        height = final.checkpoint.height
        if height <= self._machine.clock.height or height in self._waiting:
            return
        if await self._lane.run(self._check, final, self._sets()):
            self._keep(final, peer)

    def peer_is_at(self, peer: str, height: int) -> None:
        """A peer said how far it is; look at once when that is further than we are."""
        self._claims[peer] = height
        if height > self._machine.clock.height:
            self._ask.set()

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Apply what is here; ask peers for what is not. A slow peer delays neither."""
        async with trio.open_nursery() as nursery:
            for service in (self.swarm.run, self._gatherer.run, self._levelling.run):
                await nursery.start(service)
            nursery.start_soon(self._keep_asking)
            task_status.started()
            while True:
                self._wake = trio.Event()
                try:
                    while await self._advance():
                        pass
                except Halted:
                    nursery.cancel_scope.cancel()
                await self._expiry.sweep()
                if self._is_behind():
                    self._ask.set()
                with trio.move_on_after(POLL_S):
                    await self._wake.wait()
        await trio.sleep_forever()  # halted: reads go on

    # Checkpoints

    async def _keep_asking(self) -> None:
        while True:
            self._ask = trio.Event()
            peer = None if self.held else self._next_peer()
            if peer is not None and await self._poll(peer):
                continue
            with trio.move_on_after(POLL_S):
                await self._ask.wait()

    def _next_peer(self) -> str | None:
        """Return whom to ask: of those that claim to be further, then of all, in turn."""
        peers = self._remote.peers()
        now, top = trio.current_time(), self._top()
        self._asked = {p: when for p, when in self._asked.items() if p in peers}
        self._claims = {p: height for p, height in self._claims.items() if p in peers}
        able = [p for p in peers if self._asked.get(p, 0.0) <= now]
        if self._levelling_calls:
            able = [p for p in able if p not in self._level] or able
        elif self._is_behind():
            able = [p for p in able if self._claims.get(p, 0) > top] or able
        return min(able, key=lambda p: self._asked.get(p, -1.0), default=None)

    async def _poll(self, peer: str) -> bool:
        """Ask a peer for the checkpoints after those that we know of.

        True when it had some, and there is room for more.
        """
        top = self._top()
        if top >= self._machine.clock.height + MAX_WAITING // 2:
            return False
        self._asked[peer] = trio.current_time()
        try:
            shown = await _in_time(self._remote.checkpoints, peer, top + 1)
            checked = await self._lane.run(
                self._check_all, shown.checkpoints, self._sets()
            )
        except (Unavailable, Reject, ProtocolError) as error:
            logger.debug("%s did not say what is new: %s", peer, error)
            if not isinstance(error, Unavailable):
                self._remote.blame(peer, error)
            self._asked[peer] = trio.current_time() + PATIENCE_S  # it rests
            self._claims.pop(peer, None)
            return False
        for final in checked:
            self._keep(final, peer)
        self._got_news = bool(checked)
        # A claim that it does not make good is not believed.
        most = shown.newest if shown.checkpoints else top
        self._claims[peer] = min(shown.newest, most)
        if not shown.checkpoints and top == self._machine.clock.height:
            # those that left are forgotten
            self._level = (self._level & set(self._remote.peers())) | {peer}
        return bool(checked)

    async def _is_level_with(self, peer: str) -> bool:
        """Ask a peer how far it is; True when that is as far as this node."""
        if self.held:
            return False
        await self._poll(peer)
        height = self._machine.clock.height
        return self._top() == height and self._claims.get(peer, 0) >= height - 1

    def _sets(self) -> Sets:
        """Return who signs what comes next, as state stands now."""
        view = self._machine.view
        return self._machine.clock.height, signers(view), successors(view)

    def _check_all(
        self, finals: Sequence[FinalCheckpoint], sets: Sets
    ) -> list[FinalCheckpoint]:
        """Return those that are final by the sets that we know, up to the first other."""
        known = []
        for final in finals:
            if not self._check(final, sets):
                break
            known.append(final)
        return known

    def _check(self, final: FinalCheckpoint, sets: Sets) -> bool:
        """Check the votes of a checkpoint ahead of ours, or Reject.

        False: a set signed it that this node will know once it has executed what comes
        before. State tells the sets of the next checkpoint and of the one after; further
        on they hold unless they have changed, which execution finds out.
        """
        height, following, later = sets
        ahead = final.checkpoint.height - height
        voters = following if ahead <= 1 else later
        if ahead > 2 and final.checkpoint.validators_root != voters.root:
            return False
        check_final(final, self._genesis, voters)
        return True

    def _keep(self, final: FinalCheckpoint, peer: str) -> None:
        height = final.checkpoint.height
        if height <= self._machine.clock.height + MAX_WAITING:
            self._waiting[height] = (final, peer)
        self._wake.set()
        self.swarm.poke()

    def _top(self) -> int:
        """Return the height up to which we know every checkpoint."""
        top = self._machine.clock.height
        while top + 1 in self._waiting:
            top += 1
        return top

    def _is_behind(self) -> bool:
        """True when a checkpoint is missing and somebody should have it."""
        top = self._top()
        return self._got_news or any(height > top for height in self._waiting)

    # Applying

    async def _advance(self) -> bool:
        """Apply the next checkpoint if it and its blocks are here."""
        if self.held:
            return False
        height = self._machine.clock.height + 1
        for old in [known for known in self._waiting if known < height]:
            del self._waiting[old]
        final, _ = self._waiting.get(height, (None, ""))
        if final is None:
            # Ours already, and to be executed again (DEC-D4)?
            final = await self._lane.run(self._machine.stored, height)
        if final is None or self._gatherer.waits_for(final.checkpoint.blocks):
            return False
        try:
            blocks = await self._lane.run(self._load, final)
            await self._machine.apply(final, blocks)
        except Reject as error:
            self._waiting.pop(height, None)
            if self._machine.clock.height < height:
                # Those who forwarded it saw that a quorum signed it, no more.
                logger.warning("checkpoint %d refused: %s", height, error)
                self._gatherer.restart()
            return False
        except Missing as error:
            self._gatherer.again(error.ids)
            return False
        except (Unavailable, Ignore) as error:
            logger.info("checkpoint %d waits for blocks: %s", height, error)
            return False
        self._waiting.pop(height, None)
        for block in blocks:
            self._pool.remove(block.id)
        self.swarm.poke()
        return True

    def _load(self, final: FinalCheckpoint) -> list[Block]:
        """Return the checkpoint's blocks. Missing when some are not here. Blocking.

        One may have been ordered before: a quorum that joined by a state could not see
        it. Its sequence is spent, so it stays a no-op.
        """
        ids = final.checkpoint.blocks
        blocks = [self._find(id) for id in ids]
        missing = [id for id, block in zip(ids, blocks) if block is None]
        if missing:
            raise Missing(missing)
        return [block for block in blocks if block is not None]

    def _find(self, id: bytes) -> Block | None:
        try:
            return self._pool.get(id) or self._blocks.get(id)
        except Pruned:  # it was ordered before, long ago
            return None


async def _in_time(ask: Callable[..., Awaitable[T]], *args: object) -> T:
    """Await a peer's answer; TooSlow when it does not come."""
    with trio.move_on_after(PATIENCE_S):
        return await ask(*args)
    raise TooSlow(f"no answer within {PATIENCE_S:g} s")


async def _nothing(ours: FinalCheckpoint | None, theirs: FinalCheckpoint) -> None:
    return None


def _decoded(raw: bytes) -> FinalCheckpoint:
    return decode(FinalCheckpoint, raw, MAX_FINAL_CHECKPOINT_BYTES)
