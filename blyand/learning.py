"""Building what trains on this node."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from blyan_proto.block.block import Block
from blyan_proto.protocols.delta import Receipt
from blyan_proto.protocols.edge import Parcel
from blyand.compute import choose_device
from blyand.errors import NotHere
from blyand.foundation import Base
from blyand.net.link import OTHER, SAME, UNKNOWN
from blyand.protocols import delta as delta_ends
from blyand.protocols import edge as edge_ends
from blyand.protocols.fetch import Fetcher
from blyand.replica import Replica
from blyand.rules.economy.latency import BOUNDS_MS
from blyand.rules.records import Seat
from blyand.training.compacting import Compactor
from blyand.training.crew import Crew
from blyand.training.delivery import Delivery, Reach
from blyand.training.donors import Donors
from blyand.training.edge import Edge
from blyand.training.holder import Holder
from blyand.training.journal import Journal
from blyand.training.keeping import Keeping
from blyand.training.learner import Learner
from blyand.training.logbook import Logbook
from blyand.training.passed import Passed
from blyand.training.primary import Primary
from blyand.training.ways import Ways


@dataclass(frozen=True)
class Carriage:
    """How deltas get to and fro between regions."""

    ways: Ways
    passed: Passed
    donors: Donors
    edge: Edge
    client: edge_ends.Client


def region_of(base: Base, peer: str) -> str:
    """Return whether a peer stands in this node's region, as it says or as is measured.

    Bytes are counted by it. Which way deltas go follows the chain: `Ways`.
    """
    met = base.meeting.peers.get(peer)
    if met is None:
        return UNKNOWN
    ours, theirs = base.config.net.region, met.greeting.region
    if ours and theirs:
        return SAME if ours == theirs else OTHER
    rtts = (wire.rtt_ms for wire in base.host.wires() if wire.peer_id == peer)
    rtt_ms = min((rtt for rtt in rtts if rtt is not None), default=None)
    if rtt_ms is None:
        return UNKNOWN
    return SAME if rtt_ms < BOUNDS_MS[0] else OTHER


def build_carriage(base: Base, replica: Replica, fetcher: Fetcher) -> Carriage:
    """Return what spares the links between regions."""
    client = edge_ends.Client(base.host, base.genesis.id)
    ways = Ways(
        base.key.account,
        lambda: replica.view,
        replica.peer_of,
        lambda peer: peer in base.meeting.peers,
        by_edges=base.config.training.edge == "auto",
    )

    async def push(to: Seat, parcel: Parcel) -> Sequence[Receipt | None]:
        peer = replica.peer_of(to.account)
        if peer is None:
            raise NotHere("the primary's address is not known")
        return await client.hand(peer, parcel, [to.key] * len(parcel.bundles))

    passed = Passed()
    donors = Donors(
        lambda: replica.view,
        ways,
        fetcher,
        base.stores.blobs,
        base.disk_lane,
        client.pieces,
        replica.peer_of,
        passed,
    )
    edge = Edge(base.key.account, lambda: replica.view, ways, push, passed)
    base.host.region_of = functools.partial(region_of, base)
    return Carriage(ways, passed, donors, edge, client)


def build_learner(
    base: Base,
    replica: Replica,
    carriage: Carriage,
    holder: Holder,
    primary: Primary,
    journal: Journal,
    keeping: Keeping,
    whole: Callable[[bytes], Block | None],
    fetcher: Fetcher,
    trainer: Crew,
) -> Learner:
    """Return the learner; its own node is among those that it hands deltas to."""

    async def carry(
        edge: bytes, parcel: Parcel, signers: Sequence[bytes]
    ) -> Sequence[Receipt | None]:
        receipts: Sequence[Receipt | None]
        if edge == base.key.account:
            receipts = await carriage.edge.forward(parcel.bundles)
        else:
            peer = replica.peer_of(edge)
            if peer is None:
                raise NotHere("the edge's address is not known")
            receipts = await carriage.client.hand(peer, parcel, signers)
        for one, receipt in zip(parcel.bundles, receipts):
            if receipt is not None:
                await keeping.answered(one.bundle, receipt)
        return receipts

    reach = Reach(
        carry=carry,
        push=keeping.pushing(delta_ends.Client(base.host, base.genesis.id).push),
        take=primary.take,
        peer_of=replica.peer_of,
        is_connected=lambda peer: peer in base.meeting.peers,
    )
    return Learner(
        base.key.account,
        lambda: replica.view,
        whole,
        holder,
        base.stores.blobs,
        trainer,
        Delivery(
            base.key,
            base.genesis.id,
            holder,
            reach,
            journal,
            carriage.ways,
            carriage.passed,
        ),
        fetcher.get,
        base.events,
        journal,
        base.home.residuals,
        choose_device(base.config.compute.device),
        base.threads,
        Logbook(base.home.podl, base.key, base.genesis.id, base.disk_lane),
    )


def build_compactor(base: Base, replica: Replica, holder: Holder) -> Compactor:
    """Return what makes snapshots of groups whose chains grew long."""
    return Compactor(
        base.key.account,
        lambda: replica.view,
        replica.author.make,
        base.disk_lane,
        base.events,
        holder.is_slow,
    )
