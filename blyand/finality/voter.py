"""Service: this node's part in the agreement, height after height.

For each height one `Height` runs until a checkpoint of it is executed here, by our own
decision or by what followed it. Between heights nothing is kept but the last one, for
votes that come late, and what the intent log and the lock on disk say.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from random import Random

import trio

from blyan_proto.checkpoint import FinalCheckpoint, Vote
from blyan_proto.codec import encode
from blyan_proto.genesis import Genesis
from blyan_proto.protocols.votes import HOLDINGS_S, IDLE_HOLDINGS_S, MESH
from blyan_proto.validators import ValidatorSet
from blyand.clock import Clock
from blyand.compute import Threads
from blyand.events import Broadcast, CheckpointFinalised
from blyand.finality.hearing import Hearing
from blyand.finality.height import Height, Report
from blyand.finality.memory import Memory
from blyand.finality.pen import Pen
from blyand.finality.ports import Availability, Chain, Mesh, Message, Pending
from blyand.finality.proposing import Proposing
from blyand.finality.scrutiny import Scrutiny
from blyand.finality.timing import Timing
from blyand.metrics import Metrics
from blyand.net.identity import peer_id_of, public_key_of
from blyand.rules.chain.agreement import NOT_STARTED, Agreement
from blyand.rules.chain.holdings import holdings_of
from blyand.rules.chain.validators import is_member, signers, successors, turns
from blyand.rules.economy.rotation import KEYS, owner_of
from blyand.rules.records import NODES
from blyand.rules.view import View
from blyand.store.intents import IntentLog

logger = logging.getLogger(__name__)

ASKED = 3  # peers that are told what this node holds, each time


@dataclass(frozen=True)
class Surroundings:
    """What the voter stands in."""

    genesis: Genesis
    chain: Chain
    pending: Pending
    availability: Availability
    mesh: Mesh
    events: Broadcast
    clock: Clock
    lane: Threads
    metrics: Metrics
    random: Random
    publish: Callable[[bytes], Awaitable[None]]  # gossips a final checkpoint
    report: Report  # two conflicting messages of one signer
    reveal: Callable[[bytes], bytes]  # key -> next link of its hash chain


class Voter:
    """Agrees with the other validators on checkpoints."""

    def __init__(
        self,
        around: Surroundings,
        pen: Pen,
        intents: IntentLog,
        *,
        is_lost: bool = False,
    ) -> None:
        self._around = around
        self._chain = around.chain
        self._pen = pen
        self.timing = Timing.of(around.genesis)
        self.memory = Memory(
            around.chain, around.mesh, pen, intents, around.lane, is_lost
        )
        self._hearing = Hearing(
            around.genesis, around.chain, around.mesh, pen, around.lane, self
        )
        self._scrutiny = Scrutiny(
            around.genesis,
            around.chain,
            around.pending,
            around.availability,
            around.lane,
        )
        self._proposing = Proposing(
            around.chain,
            around.pending,
            around.availability,
            around.clock,
            around.reveal,
            self._parent_votes,
        )
        self.now: Height | None = None
        self.before: Height | None = None
        self.latency_s: float | None = None  # of the last checkpoint, from its begin
        self._executed_s = 0.0  # when the newest checkpoint was executed here
        self._advanced = trio.Event()
        self._unpublished: list[FinalCheckpoint] = []

    @property
    def is_learning(self) -> bool:
        return self.memory.is_learning

    async def hear(self, peer: str, message: Message) -> None:
        """Take in what another validator said. ProtocolError for what none says."""
        await self._hearing.hear(peer, message)

    def admits(self, peer: str) -> bool:
        """True for a validator of the sets that we know."""
        view, key = self._chain.view(), public_key_of(peer)
        if is_member(view, key):
            return True
        rotated = KEYS.get(view, key)  # a newer key than the one in the set
        return rotated is not None and any(
            owner_of(view, member.key) == rotated.account
            for voters in (signers(view), successors(view))
            for member in voters
        )

    async def remember(self) -> None:
        """Return when this node knows what it must not contradict (DEC-A9)."""
        self._connect()
        await self.memory.settle()

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Take part, for ever; quiet while this node is no validator."""
        self._executed_s = trio.current_time()
        with self._around.events.subscribe(CheckpointFinalised) as facts:
            async with trio.open_nursery() as nursery:

                async def watch() -> None:
                    async for fact in facts:
                        self._executed_s = trio.current_time()
                        advanced, self._advanced = self._advanced, trio.Event()
                        advanced.set()
                        await self._publish(fact.final)

                nursery.start_soon(watch)
                nursery.start_soon(self._repeat)
                task_status.started()
                await self.remember()
                while True:
                    await self._one_height()

    async def _one_height(self) -> None:
        number = self._chain.clock().height + 1
        self._connect()
        self.now = self._height(number)
        try:
            async with trio.open_nursery() as nursery:
                if self.now is not None:
                    nursery.start_soon(
                        self.now.run,
                        self._executed_s + self.timing.interval,
                        self._executed_s + self.timing.idle,
                    )
                    for message in self._hearing.early():
                        self.now.receive(message)
                while self._chain.clock().height < number:
                    await self._advanced.wait()
                nursery.cancel_scope.cancel()
        finally:
            self._put_aside(number)

    def _height(self, number: int) -> Height | None:
        """Return the agreement on a height; None where this node has no part in it."""
        around, voters = self._around, signers(self._chain.view())
        key = self._pen.key_in(voters)
        if key is None:
            return None
        may = self._pen.may_sign(number)
        agreement = Agreement(
            number,
            voters,
            turns(self._chain.view()).proposer_of,
            key.public if may else None,
            self._pen.promises(number),
        )
        return Height(
            agreement,
            key if may else None,
            self._pen,
            around.chain,
            around.pending,
            self._scrutiny,
            self._proposing,
            around.mesh,
            around.clock,
            self.timing,
            around.genesis.setting("clock_bound_ms"),
            around.report,
            around.metrics,
        )

    def _connect(self) -> None:
        """Have streams to the validators of this height and the next."""
        view = self._chain.view()
        wanted: dict[str, None] = {}
        for voters in (signers(view), successors(view)):
            own = self._pen.key_in(voters)
            if own is not None:
                near = neighbours(voters, own.public)
                wanted |= dict.fromkeys(peer_of(view, key) for key in near)
        self._around.mesh.want(list(wanted))

    async def _repeat(self) -> None:
        """Tell some peers, from time to time, where this node is and what it holds."""
        while True:
            height = self.now
            is_idle = height is None or height.agreement.round == NOT_STARTED
            pause_s = IDLE_HOLDINGS_S if is_idle else HOLDINGS_S
            with trio.move_on_after(pause_s * self._around.random.uniform(0.8, 1.2)):
                await self._advanced.wait()
                continue
            if self.now is None:
                continue
            held = holdings_of(self.now.agreement)
            peers = sorted(self._around.mesh.open)
            for peer in self._around.random.sample(peers, min(ASKED, len(peers))):
                self._around.mesh.tell(peer, held)

    async def _publish(self, final: FinalCheckpoint) -> None:
        """Gossip what this node decided, once it is stored here (DEC-A9)."""
        for height in (self.now, self.before):
            decided = height.decided if height is not None else None
            if decided is not None and decided.checkpoint.id == final.checkpoint.id:
                await self._around.publish(encode(decided))
                return

    def _put_aside(self, number: int) -> None:
        """Keep the height that is over for what comes late."""
        height, self.before, self.now = self.now, self.now, None
        final = self._chain.stored(number)
        if height is not None and final is not None:
            height.conclude(final)
        if height is not None and height.began_s is not None:
            self.latency_s = trio.current_time() - height.began_s
            self._around.metrics.histogram("blyan_checkpoint_seconds").observe(
                self.latency_s
            )

    def _parent_votes(self) -> Sequence[Vote] | None:
        """Return who signed the newest checkpoint as far as this node has heard."""
        if self.before is None or self.before.agreement.decision is None:
            return None
        if self.before.agreement.decision.id != self._chain.last_id():
            return None
        return self.before.agreement.precommits()


def peer_of(view: View, key: bytes) -> str:
    """Return the peer whose key in the set this is: its node may have a newer one."""
    node = NODES.get(view, owner_of(view, key) or b"")
    return peer_id_of(node.key if node else key)


def neighbours(voters: ValidatorSet, own: bytes) -> list[bytes]:
    """Return the members with which a validator has streams, both ways, by key.

    All others; of a set above `MESH` the nearest on a ring, and retransmission carries
    messages on from there.
    """
    keys = [member.key for member in voters]
    place = keys.index(own)
    ring = keys[place + 1 :] + keys[:place]
    if len(keys) > MESH:
        side = (MESH - 1) // 2
        ring = ring[:side] + ring[-side:]
    return ring
