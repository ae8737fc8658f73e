"""How a simulated node's deltas travel between regions: /blyan/edge/1 by function call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from blyan_proto.codec import encode
from blyan_proto.protocols.delta import Receipt
from blyan_proto.protocols.edge import Parcel, Replies, Span
from blyand.protocols.edge import (
    Ends,
    check_parcel,
    check_pieces,
    check_receipts,
    cut,
    receipts_for,
)
from blyand.protocols.fetch import Fetcher
from blyand.rules.records import Seat
from blyand.training.donors import Donors
from blyand.training.edge import Edge
from blyand.training.passed import Passed
from blyand.training.ways import Ways

if TYPE_CHECKING:
    from tests.sim.training_node import TrainNode


class Carrier:
    """The daemon's own parts, and a wire of function calls that counts bytes."""

    def __init__(self, node: TrainNode, fetcher: Fetcher, lane: Any) -> None:
        self._node, self._network = node, node.genesis.id
        account = node.key.account

        def view() -> Any:
            return node.machine.view

        self.ways = Ways(
            account,
            view,
            node.peer_of,
            lambda peer: peer in node.wire.others(node.name),
        )
        self.passed = Passed()
        self.donors = Donors(
            view,
            self.ways,
            fetcher,
            node.blobs,
            lane,
            self.pieces,
            node.peer_of,
            self.passed,
        )
        self.edge = Edge(account, view, self.ways, self.hand_on, self.passed)
        self.forward = self.edge.forward  # a liar's is another

    async def hand(
        self, peer: str, parcel: Parcel, signers: Sequence[bytes]
    ) -> Sequence[Receipt | None]:
        """Hand bundles to an edge or a primary."""
        other = await self._node.reach(peer)
        there = other.key.account
        check_parcel(parcel, there, self._node.key.public, self._network)
        forward = other.carrier.forward
        ends = Ends(other.primary.take, forward, other.blobs.open_array)
        answer = Replies(tuple(await receipts_for(parcel, there, ends)))
        self._node.wire.may_break()
        check_receipts(answer, parcel, signers, self._network)
        self._count(peer, parcel, answer)
        return answer.receipts

    async def hand_on(self, to: Seat, parcel: Parcel) -> Sequence[Receipt | None]:
        """Hand a parcel to its primary."""
        peer = self._node.peer_of(to.account) or ""
        return await self.hand(peer, parcel, [to.key] * len(parcel.bundles))

    async def carry(
        self, edge: bytes, parcel: Parcel, signers: Sequence[bytes]
    ) -> Sequence[Receipt | None]:
        """Hand our own bundles to an edge, which may be this node."""
        receipts: Sequence[Receipt | None]
        if edge == self._node.key.account:
            receipts = await self.forward(parcel.bundles)
        else:
            receipts = await self.hand(self._node.peer_of(edge) or "", parcel, signers)
        for one, receipt in zip(parcel.bundles, receipts):
            if receipt is not None:
                await self._node.keeping.answered(one.bundle, receipt)
        return receipts

    async def pieces(
        self, peer: str, blob: bytes, spans: Sequence[Span]
    ) -> Sequence[bytes]:
        """Ask a peer for single deltas of an update."""
        other = await self._node.reach(peer)
        answer = cut(other.blobs.open_array(blob), spans)
        check_pieces(answer, spans)
        self._count(peer, answer)
        return answer.pieces

    def _count(self, peer: str, *messages: object) -> None:
        size = sum(len(encode(message)) for message in messages)
        self._node.wire.count(self._node.name, peer, size)
