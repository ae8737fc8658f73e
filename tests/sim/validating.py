"""What a simulated node needs to vote: the daemon's voter, its mesh by function call."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from blyan_proto.checkpoint import Vote
from blyan_proto.errors import ProtocolError
from blyan_proto.protocols.votes import MAX_MESSAGE_BYTES, MESSAGE
from blyan_proto.signing import SigningKey
from blyan_proto.validators import ValidatorSet
from blyand.errors import NotHere
from blyand.events import BlockStored
from blyand.finality import beacon as beacons
from blyand.finality.pen import Pen
from blyand.finality.ports import Availability, Chain, Message, Pending
from blyand.finality.voter import Surroundings, Voter
from blyand.metrics import Metrics
from blyand.net.identity import peer_id_of
from blyand.rules.chain.validators import revealed_by
from blyand.rules.verdict import Reject

if TYPE_CHECKING:
    from tests.sim.network import SimNode


class SimMesh:
    """Messages to the other validators, late and lossy like the rest of the wire."""

    def __init__(self, node: SimNode) -> None:
        self._node = node
        self._wanted: list[str] = []
        self.is_mute: Callable[[Message], bool] = lambda message: False

    def want(self, peers: Sequence[str]) -> None:
        self._wanted = list(peers)

    @property
    def open(self) -> set[str]:
        wire, me = self._node.wire, self._node.name
        return {p for p in self._wanted if wire.connects(me, wire.name_of(p))}

    def say(self, message: Message) -> None:
        for peer in self._wanted:
            self.tell(peer, message)

    def tell(self, peer: str, message: Message) -> None:
        node, wire = self._node, self._node.wire
        if self.is_mute(message):
            return
        if isinstance(message, Vote):
            at = message.statement
            place = message.voter, at.height, at.round, at.stage
            wire.said.setdefault(place, set()).add(at.checkpoint)
        if wire.random.random() >= wire.loss:
            raw = MESSAGE.encode(message)
            node.start_soon(self._deliver, wire.name_of(peer), raw)

    async def _deliver(self, target: str, raw: bytes) -> None:
        try:
            node = await self._node.wire.reach(self._node.name, target)
        except NotHere:
            return
        if node.voter is None:
            return
        try:
            message = MESSAGE.decode(raw, MAX_MESSAGE_BYTES)
            await node.voter.hear(self._node.name, message)
        except (ProtocolError, Reject) as error:
            node.blame(self._node.name, error)


def make_voter(node: SimNode, lane: Any, is_lost: bool = False) -> Voter:
    """Return a node's voter. What may be ordered is the node's own `may_order`."""
    machine, pool = node.machine, node.pool

    def is_ordered(id: bytes) -> bool:
        return node.blocks.outcome(id) is not None

    async def changed() -> None:
        with node.events.subscribe(BlockStored, capacity=1) as facts:
            await facts.receive()

    async def fetch(peer: str, ids: Sequence[bytes]) -> None:
        name = node.wire.name_of(peer)
        got = await node.swarm.ancestors(name, ids)
        await node.intake.submit_many(got, name)
        if not got:
            raise NotHere(f"{peer} has none of the blocks")

    def reveal(key: bytes) -> bytes:
        revealed = revealed_by(machine.view, key) or b""
        return beacons.chain_of(node.key.secret).before(revealed)

    def key_in(voters: ValidatorSet) -> SigningKey | None:
        return node.key if voters.weight_of(node.key.public) else None

    return Voter(
        Surroundings(
            genesis=node.genesis,
            chain=Chain(
                view=lambda: machine.view,
                clock=lambda: machine.clock,
                last_id=lambda: machine.last_id,
                halted=lambda: machine.halted,
                stored=machine.stored,
                draft=machine.draft,
                check=machine.check,
                take=node.follower.take,
                peer_is_at=lambda peer, height: node.follower.peer_is_at(
                    node.wire.name_of(peer), height
                ),
                level=node.follower.level,
            ),
            pending=Pending(
                ready=lambda: pool.ready(
                    is_ordered, node.may_order, node.genesis.parameters
                ),
                count=lambda: len(pool),
                changed=changed,
                drop=pool.remove,
                find=lambda id: pool.get(id) or node.blocks.get(id),
                fetch=fetch,
                peers=lambda: node.wire.others(node.name),
            ),
            availability=Availability(
                is_ordered, node.may_order, node.receipts_for, node.take_receipts
            ),
            mesh=node.mesh,
            events=node.events,
            clock=node.clock,
            lane=lane,
            metrics=Metrics(),
            random=random.Random(node.wire.random.random()),
            publish=node._announce,
            report=lambda first, second: node.accused.append((first, second)),
            reveal=reveal,
        ),
        Pen(node.genesis.id, key_in, node.intents, node.locks, lane),
        node.intents,
        is_lost=is_lost,
    )


def peer_of(node: SimNode) -> str:
    return peer_id_of(node.key.public)
