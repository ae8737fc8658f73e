"""The chain as one node follows it, built from the stores and the network."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from blyan_proto import topics
from blyan_proto.checkpoint import FinalCheckpoint
from blyand.chain.author import Author
from blyand.chain.follow import Follower
from blyand.chain.intake import Intake, Sources
from blyand.chain.machine import Machine
from blyand.chain.mending import Givers, Mender
from blyand.chain.pool import Pool
from blyand.chain.swarm import Remote, Swarm
from blyand.foundation import Base
from blyand.net.identity import peer_id_of
from blyand.protocols import blocks as blocks_ends
from blyand.protocols import sync as sync_ends
from blyand.rules.records import NODES
from blyand.rules.view import View


@dataclass(frozen=True)
class Replica:
    """The chain as this node follows it."""

    machine: Machine
    pool: Pool
    intake: Intake
    follower: Follower
    author: Author
    mender: Mender

    @property
    def view(self) -> View:
        return self.machine.view

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
            swarm.ancestors,
            base.blame,
            lambda account: NODES.get(machine.view, account) is not None,
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
    )
    return Replica(machine, pool, intake, follower, author, mender)
