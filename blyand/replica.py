"""The chain as one node follows it, built from the stores and the network."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

from blyan_proto import topics
from blyan_proto.block.block import Block
from blyan_proto.checkpoint import BlobReceipt, FinalCheckpoint
from blyan_proto.checkpoint import Receipts as Message
from blyan_proto.codec import encode
from blyand.chain.author import Author
from blyand.chain.follow import Follower
from blyand.chain.intake import Intake, Sources
from blyand.chain.machine import Machine
from blyand.chain.mending import Givers, Mender
from blyand.chain.pool import Pool
from blyand.chain.receipts import Receipts
from blyand.chain.swarm import Remote, Swarm
from blyand.foundation import Base
from blyand.net.identity import peer_id_of
from blyand.protocols import blocks as blocks_ends
from blyand.protocols import sync as sync_ends
from blyand.rules.chain.known import Known, tip_place
from blyand.rules.records import NODES
from blyand.rules.view import View
from blyand.store.blocks import BlockStore
from blyand.store.history import History


@dataclass(frozen=True)
class Replica:
    """The chain as this node follows it."""

    machine: Machine
    pool: Pool
    intake: Intake
    follower: Follower
    author: Author
    mender: Mender
    blocks: BlockStore
    history: History
    receipts: Receipts
    known: Known = field(default_factory=Known)

    @property
    def view(self) -> View:
        return self.machine.view

    def is_ordered(self, id: bytes) -> bool:
        """True when a checkpoint ordered a block, as far as disk and state tell.

        A node that began with a state may never have seen the block itself.
        """
        if self.blocks.outcome(id) is not None:
            return True
        if self.history.is_whole:
            return False
        return self.known.has(self.view, self.history.floor.joined, id)

    def peer_of(self, account: bytes) -> str | None:
        """Return the peer id of a registered account."""
        node = NODES.get(self.view, account)
        return peer_id_of(node.key) if node is not None else None


def build_replica(base: Base) -> Replica:
    """Return the chain, from the stores and the network."""
    machine = Machine(
        base.genesis,
        base.stores.state,
        base.stores.checkpoints,
        base.chain_lane,
        base.events,
        base.poison,
        base.stores.sets,
    )
    client = blocks_ends.Client(base.host)
    remote = Remote(
        peers=base.peers,
        archives=base.archives,
        checkpoints=sync_ends.Client(base.host).fetch,
        blocks=client.get,
        compare=client.compare,
        blame=base.blame,
    )
    swarm = Swarm(remote)

    async def ancestors(peer: str, ids: Sequence[bytes]) -> Sequence[Block]:
        """Fetch parents of new blocks; not of history that this node does not have.

        What is older than the state that it began with was ordered, or never will be.
        """
        history = base.stores.history
        if follower.held:
            return ()
        got = await swarm.ancestors(peer, ids)
        if history.is_whole:
            return got
        joined = history.floor.joined
        return [block for block in got if block.header.anchor_height >= joined]

    pool = Pool()
    intake = Intake(
        base.genesis,
        base.stores.blocks,
        base.stores.commit,
        pool,
        base.events,
        base.clock,
        base.chain_lane,
        base.poison,
        Sources(
            ancestors,
            base.blame,
            lambda account: NODES.get(machine.view, account) is not None,
            lambda id: tip_place(machine.view, id),
            lambda: not base.stores.history.is_whole,
        ),
    )
    follower = Follower(
        base.genesis,
        machine,
        base.stores.blocks,
        pool,
        intake,
        base.chain_lane,
        remote,
        swarm,
    )
    author = Author(
        base.key,
        machine,
        pool,
        intake,
        base.stores.intents,
        base.clock,
        functools.partial(base.host.gossip.publish, topics.BLOCK),
        base.settled,
    )

    async def finals(peer: str, height: int) -> Sequence[FinalCheckpoint]:
        return (await remote.checkpoints(peer, height)).checkpoints

    mender = Mender(
        base.stores.database,
        base.stores.blocks,
        base.stores.checkpoints,
        base.disk_lane,
        Givers(base.peers, finals, swarm.ancestors, base.blame),
        lambda: base.stores.history.floor.blocks,
    )
    receipts = Receipts(
        base.genesis.id, lambda: machine.view, pool.get, base.chain_lane
    )
    return Replica(
        machine,
        pool,
        intake,
        follower,
        author,
        mender,
        base.stores.blocks,
        base.stores.history,
        receipts,
    )


async def give_receipt(base: Base, replica: Replica, receipt: BlobReceipt) -> None:
    """Let everybody know that a blob is here."""
    replica.receipts.put(receipt)
    raw = encode(Message((receipt,)))
    await base.host.gossip.publish(topics.RECEIPT, raw)
