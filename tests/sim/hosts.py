"""Simulated nodes on real hosts: memory stores and no gossip, but every byte on a socket."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import trio

from blyan_proto.genesis import Genesis
from blyan_proto.protocols import blocks as blocks_proto
from blyan_proto.protocols import sync as sync_proto
from blyan_proto.signing import SigningKey
from blyand.chain.swarm import Remote
from blyand.joining.donor import Donor
from blyand.joining.records import Records
from blyand.net.connections import PeerInfo
from blyand.net.host import Host, HostSettings, open_host
from blyand.protocols import blocks as blocks_ends
from blyand.protocols import sync as sync_ends
from blyand.protocols.uploads import Uploads
from blyand.store.history import History
from tests.sim.network import InlineLane, SimNode, VirtualClock, Wire


class HostNode(SimNode):
    """A node that syncs over a host of its own; nothing is gossiped."""

    def __init__(
        self,
        name: str,
        genesis: Genesis,
        key: SigningKey,
        home: Path,
        host: Host,
        clock: VirtualClock,
    ) -> None:
        self.host = host
        self.all: dict[str, HostNode] = {}  # by peer id
        self.clock = clock
        super().__init__(name, genesis, key, Wire(random.Random(0)), home)
        self.history = History(self.store, self.checkpoints, self.blocks)
        self.records = Records(
            self.store, self.checkpoints, self.history, self.sets, self.blocks
        )
        self.donor = Donor(
            self.machine._state.freeze,
            self.checkpoints.at,
            self.events,
            InlineLane(),
            every=4,
        )
        host.handle(
            blocks_proto.PROTOCOL_ID,
            blocks_ends.serve(self.blocks.get, self.pool.ids, InlineLane()),
        )
        host.handle(
            sync_proto.PROTOCOL_ID,
            sync_ends.serve(
                lambda: self.machine.clock.height,
                self.records,
                self.donor,
                InlineLane(),
                Uploads(),
            ),
        )
        host.on_connected(self._admit)

    def _remote(self) -> Remote:
        client = blocks_ends.Client(self.host)
        return Remote(
            peers=lambda: [info.peer_id for info in self.host.peers()],
            archives=lambda: (),
            checkpoints=sync_ends.Client(self.host).fetch,
            blocks=client.get,
            compare=client.compare,
            blame=self.blame,
        )

    async def _admit(self, info: PeerInfo) -> None:
        """What hello does: serve the peer, and hear how far it is."""
        self.host.admit(info.peer_id)
        height = self.all[info.peer_id].machine.clock.height
        self.follower.peer_is_at(info.peer_id, height)

    async def _spread(self, raw: bytes, check) -> None:
        await trio.lowlevel.checkpoint()

    def sent(self) -> int:
        """Bytes that left on /blyan/blocks/1."""
        return self.host.traffic().get(blocks_proto.PROTOCOL_ID, (0, 0))[0]


@asynccontextmanager
async def open_nodes(genesis: Genesis, keys: Sequence[SigningKey], home: Path):
    """Give a node for each key, not yet connected or running."""
    async with AsyncExitStack() as stack:
        made, clock = [], VirtualClock(trio.current_time())
        for index, key in enumerate(keys):
            folder = home / f"node{index}"
            folder.mkdir(parents=True)
            host = await stack.enter_async_context(
                open_host(HostSettings(key, genesis.id))
            )
            made.append(HostNode(f"node{index}", genesis, key, folder, host, clock))
        for node in made:
            node.all = {other.host.peer_id: other for other in made}
        yield made


async def connect(*nodes: HostNode) -> None:
    """Connect each with each, all at the same time."""
    async with trio.open_nursery() as nursery:
        for place, node in enumerate(nodes):
            for other in nodes[place + 1 :]:
                nursery.start_soon(node.host.connect, other.host.addresses[0])
