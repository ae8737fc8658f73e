"""Keeping unordered blocks level with the peers, one peer at a time.

Gossip brings new blocks; what it lost, or what was made on the other side of a cut, is
found here by comparing sets. Each node looks for what itself lacks. Nothing is pushed:
the peer compares with us when it is our turn there, so a block crosses a link once and
nobody takes in what it did not ask for.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Iterable

import trio

from blyan_proto.errors import ProtocolError
from blyand.chain.gather import take
from blyand.chain.intake import Intake
from blyand.chain.pool import Pool
from blyand.chain.swarm import Remote, Swarm
from blyand.errors import Unavailable
from blyand.rules.chain.reconcile import MAX_ROUNDS, Comparison, IdSet
from blyand.store.blocks import BlockStore

logger = logging.getLogger(__name__)

TURN_S = 2.0  # between two comparisons
COMPARE_S = 30.0  # how long one may take
FETCH_S = 30.0  # how long fetching what it found may take
HOPELESS_S = 1.0  # how often it is looked what nobody gives
SPREAD_AT = 64  # so many missing blocks are sought at other peers, too
SPREAD = 3
MAX_SKIPS = 5  # turns without comparing with a peer that is ahead or behind
SHUN_S = 60.0  # a peer that shows blocks and gives none is left alone
BEHIND_S = 20.0  # so is one that has not ordered what we have
UNUSABLE_S = 30.0  # a block that could not be used is left alone
MAX_UNUSABLE = 8192
LOOKED_AT_ONCE = 128  # ids in one turn of the loop: about a millisecond


class Levelling:
    """Finds and takes in unordered blocks that peers have and this node lacks."""

    def __init__(
        self,
        blocks: BlockStore,
        pool: Pool,
        intake: Intake,
        swarm: Swarm,
        remote: Remote,
        is_behind: Callable[[], bool],
        is_level: Callable[[str], Awaitable[bool]],
    ) -> None:
        """While this node `is_behind`, and until a peer `is_level`, checkpoints come
        first."""
        self._blocks = blocks
        self._pool = pool
        self._intake = intake
        self._swarm = swarm
        self._remote = remote
        self._is_behind = is_behind
        self._is_level = is_level
        self._skips: Counter[str] = Counter()
        self._turns: dict[str, float] = {}  # peer -> when it had its turn, or later
        self._unusable: OrderedDict[bytes, float] = OrderedDict()  # id -> until when
        self.hurry = False  # somebody waits until all peers were compared with
        self.compared: set[str] = set()  # since when it was cleared

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Compare with one peer after the other, the longest waiting first."""
        task_status.started()
        while True:
            while self._is_behind():
                await trio.sleep(TURN_S / 10)
            peer = self._next()
            if peer is not None:
                await self._level(peer)
            await trio.sleep(TURN_S / 10 if self.hurry else TURN_S)

    def rests(self, peer: str) -> bool:
        """True while a peer is left alone."""
        return bool(self._turns.get(peer, 0.0) > trio.current_time())

    def _next(self) -> str | None:
        peers = self._remote.peers()
        self._skips = Counter({p: n for p, n in self._skips.items() if p in peers})
        self._turns = {p: turn for p, turn in self._turns.items() if p in peers}
        now = trio.current_time()
        able = [p for p in peers if not self.rests(p)]
        if self.hurry:
            able = [p for p in able if p not in self.compared] or able
        peer = min(able, key=lambda p: self._turns.get(p, -1.0), default=None)
        if peer is not None:
            self._turns[peer] = now
        return peer

    async def _level(self, peer: str) -> None:
        is_level = await self._is_level(peer)
        if not is_level and not self.hurry and self._skips[peer] < MAX_SKIPS:
            # What is unordered at one of us is ordered at the other.
            self._skips[peer] += 1
            return
        self._skips.pop(peer, None)
        wanted = await self._missing(peer)
        if wanted is None:
            return
        if not wanted:
            self.compared.add(peer)
            return
        holders = {peer: wanted}
        if len(wanted) >= SPREAD_AT:
            holders |= await self._spread(wanted, peer)
        for holder, ids in holders.items():
            self._swarm.want(ids, [holder])
        came: set[bytes] = set()
        with trio.move_on_after(FETCH_S):
            await self._bring(wanted, came)
        self._swarm.forget(wanted, among_holders=True)
        absent = await self._absent(wanted)
        self._set_aside(absent)
        if len(absent) == len(wanted) and not came:
            self._turns[peer] = trio.current_time() + SHUN_S
        elif came.issuperset(absent):
            self.compared.add(peer)

    async def _compare(
        self, peer: str, own: IdSet, rounds: int = MAX_ROUNDS
    ) -> Comparison | None:
        """Compare with a peer; None if it does not answer."""
        try:
            with trio.move_on_after(COMPARE_S):
                return await self._remote.compare(peer, own, rounds)
        except Unavailable as error:
            logger.debug("%s does not compare: %s", peer, error)
        except ProtocolError as error:
            self._remote.blame(peer, error)
        return None

    async def _missing(self, peer: str) -> list[bytes] | None:
        """Return usable ids that a peer has and we lack, None if it does not tell."""
        compared = await self._compare(peer, self._pool.ids)
        if compared is None:
            return None
        found = dict.fromkeys(compared.found)
        new = await self._absent(found)
        now = trio.current_time()
        if len(found) - len(new) > max(SPREAD_AT, len(new)):
            # It has yet to see what was ordered; comparing tells little until then.
            self._turns[peer] = now + BEHIND_S
        return [id for id in new if self._unusable.get(id, 0.0) <= now]

    async def _absent(self, ids: Iterable[bytes]) -> list[bytes]:
        """Return the ids of blocks that are not here; others have turns meanwhile."""
        absent = []
        for count, id in enumerate(ids):
            if count % LOOKED_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
            if not self._blocks.has(id):
                absent.append(id)
        return absent

    async def _spread(self, wanted: list[bytes], first: str) -> dict[str, list[bytes]]:
        """Return which other peers seem to have the wanted blocks, to share the load.

        They are asked for their sum only. Who has a set as large most likely came from
        the same side of a cut; who turns out to lack a block costs a question.
        """
        own = self._pool.ids.with_more(wanted)
        holders: dict[str, list[bytes]] = {}

        async def ask(peer: str) -> None:
            compared = await self._compare(peer, own, 1)
            if compared is not None and compared.theirs >= len(wanted):
                holders[peer] = wanted

        others = [peer for peer in self._remote.peers() if peer != first]
        async with trio.open_nursery() as nursery:
            for peer in sorted(others, key=lambda p: self._turns.get(p, -1.0))[:SPREAD]:
                nursery.start_soon(ask, peer)
        return holders

    async def _bring(self, wanted: list[bytes], came: set[bytes]) -> None:
        """Take in what arrives, parents before children; note in `came` what that was."""
        left, looked_s = set(wanted), trio.current_time()
        while left:
            changed = self._swarm.changed
            if trio.current_time() - looked_s >= HOPELESS_S:
                looked_s = trio.current_time()
                left -= self._swarm.hopeless(left)
            left = {id for id in left if self._is_due(id)}
            here = {id: found for id in left if (found := self._swarm.look(id))}
            if len(here) < len(left) and not (self._swarm.is_full and here):
                with trio.move_on_after(HOPELESS_S):
                    await changed.wait()
                continue
            left -= here.keys()
            if here:
                came.update(here)
                await take(self._intake, self._swarm, here)

    def _is_due(self, id: bytes) -> bool:
        """False once another part of this node took a block over."""
        return id not in self._pool and self._swarm.knows(id)

    def _set_aside(self, ids: list[bytes]) -> None:
        """Leave blocks alone for a while that could not be had or used."""
        now = trio.current_time()
        for id in ids:
            self._unusable[id] = now + UNUSABLE_S
            self._unusable.move_to_end(id)
        while self._unusable and (
            len(self._unusable) > MAX_UNUSABLE
            or next(iter(self._unusable.values())) <= now
        ):
            self._unusable.popitem(last=False)
