"""/blyan/edge/1, both ends: parcels of bundles in, the primaries' receipts out; and single
deltas of an update. docs/protocols/edge.md"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np

from blyan_proto.errors import BadSignature, UnexpectedMessage
from blyan_proto.framing import frame
from blyan_proto.protocols.delta import Bundle, Receipt
from blyan_proto.protocols.edge import (
    ANSWER,
    DEADLINE_S,
    MAX_PARCEL_BYTES,
    MAX_PIECES_BYTES,
    MAX_RECEIPTS_BYTES,
    PROTOCOL_ID,
    REQUEST,
    Addressed,
    GetPieces,
    Parcel,
    Pieces,
    Replies,
    Span,
)
from blyan_proto.protocols.result import ResultCode
from blyand.compute import Threads
from blyand.net.host import Host
from blyand.net.identity import public_key_of
from blyand.net.stream import MessageStream, Serve, expect_ok
from blyand.protocols.delta import check_bundle, check_receipt
from blyand.protocols.uploads import Uploads

Forward = Callable[[Sequence[Addressed]], Awaitable[Sequence[Receipt | None]]]


@dataclass(frozen=True)
class Ends:
    """What a node does with what comes."""

    take: Callable[[Bundle], Awaitable[Receipt]]  # as a primary
    forward: Forward  # as an edge
    open_array: Callable[[bytes], np.ndarray]  # a blob; NotHere


class Client:
    """Hands parcels to edges and primaries; asks for single deltas."""

    def __init__(self, host: Host, network: bytes) -> None:
        self._host = host
        self._network = network

    async def hand(
        self, peer: str, parcel: Parcel, signers: Sequence[bytes]
    ) -> Sequence[Receipt | None]:
        """Send a parcel; return the receipts, each signed by the primary that is named.

        `signers`: their keys, in the parcel's order. A false receipt is the peer's fault.
        """
        async with self._host.request(
            peer, PROTOCOL_ID, DEADLINE_S, bulk=True
        ) as stream:
            await stream.send_message(parcel, REQUEST, deadline_s=DEADLINE_S)
            await stream.close_write()
            await expect_ok(stream, DEADLINE_S)
            answer = await stream.receive_message(
                ANSWER, MAX_RECEIPTS_BYTES, DEADLINE_S
            )
            check_receipts(answer, parcel, signers, self._network)
        receipts: Sequence[Receipt | None] = answer.receipts
        return receipts

    async def pieces(
        self, peer: str, blob: bytes, spans: Sequence[Span]
    ) -> Sequence[bytes]:
        """Return parts of a blob, of the lengths asked for, unchecked."""
        async with self._host.request(
            peer, PROTOCOL_ID, DEADLINE_S, bulk=True
        ) as stream:
            await stream.send_message(GetPieces(blob, tuple(spans)), REQUEST)
            await stream.close_write()
            await expect_ok(stream, DEADLINE_S)
            most = MAX_PIECES_BYTES + MAX_RECEIPTS_BYTES
            answer = await stream.receive_message(ANSWER, most, DEADLINE_S)
            check_pieces(answer, spans)
        pieces: Sequence[bytes] = answer.pieces
        return pieces


def serve(
    network: bytes, account: bytes, ends: Ends, lane: Threads, uploads: Uploads
) -> Serve:
    """Return the handler of a node with this account."""

    async def answer(stream: MessageStream) -> None:
        request = await stream.receive_message(REQUEST, MAX_PARCEL_BYTES, DEADLINE_S)
        if isinstance(request, GetPieces):
            with uploads.place(stream.peer):
                framed = await lane.run(_cut, ends.open_array, request)
                await stream.send_result(ResultCode.OK)
                await uploads.send(stream, framed, [len(framed)], DEADLINE_S)
            return
        sender = public_key_of(stream.peer)
        await lane.run(check_parcel, request, account, sender, network)
        receipts = await receipts_for(request, account, ends)
        await stream.send_result(ResultCode.OK)
        await stream.send_message(Replies(tuple(receipts)), ANSWER)

    return answer


async def receipts_for(
    parcel: Parcel, account: bytes, ends: Ends
) -> list[Receipt | None]:
    """Take what a parcel has for this node, pass on the rest; return all receipts."""
    far = [one for one in parcel.bundles if one.to != account]
    passed = iter(await ends.forward(far) if far else ())
    return [
        await ends.take(one.bundle) if one.to == account else next(passed)
        for one in parcel.bundles
    ]


def check_parcel(parcel: Parcel, account: bytes, sender: bytes, network: bytes) -> None:
    """Raise ProtocolError unless every bundle is whole, signed, and may come this way.

    Who passes bundles on checks them before; so one that is broken is the sender's fault.
    """
    for one in parcel.bundles:
        check_bundle(one.bundle, network)
        if not one.bundle.deltas:
            raise UnexpectedMessage("an announcement goes to the ranks themselves")
        if one.to != account and one.bundle.signer != sender:
            raise BadSignature("a bundle to pass on, of somebody else than its sender")


def check_receipts(
    answer: Replies | Pieces,
    parcel: Parcel,
    signers: Sequence[bytes],
    network: bytes,
) -> None:
    """Raise ProtocolError unless each receipt answers its bundle, by its primary's key."""
    if not isinstance(answer, Replies):
        raise UnexpectedMessage("no receipts")
    if len(answer.receipts) != len(parcel.bundles):
        raise UnexpectedMessage("not as many receipts as bundles")
    for receipt, sent, signer in zip(answer.receipts, parcel.bundles, signers):
        if receipt is None:
            continue
        if receipt.signer != signer:
            raise BadSignature("a receipt signed by somebody else than the primary")
        check_receipt(receipt, sent.bundle.manifest, network)


def check_pieces(answer: Replies | Pieces, spans: Sequence[Span]) -> None:
    """Raise UnexpectedMessage unless the parts have the lengths asked for."""
    if not isinstance(answer, Pieces):
        raise UnexpectedMessage("no pieces")
    if [len(piece) for piece in answer.pieces] != [span.bytes for span in spans]:
        raise UnexpectedMessage("pieces of other lengths than asked for")


def cut(array: np.ndarray, spans: Sequence[Span]) -> Pieces:
    """Return parts of a blob of plain bytes. UnexpectedMessage when it has not them."""
    if array.dtype != np.uint8 or array.ndim != 1:
        raise UnexpectedMessage("parts of a blob that is no list of deltas")
    if sum(span.bytes for span in spans) > MAX_PIECES_BYTES:
        raise UnexpectedMessage("more than goes into one answer")
    if any(span.offset + span.bytes > len(array) for span in spans):
        raise UnexpectedMessage("parts that the blob does not have")
    return Pieces(
        tuple(array[span.offset : span.offset + span.bytes].tobytes() for span in spans)
    )


def _cut(open_array: Callable[[bytes], np.ndarray], request: GetPieces) -> memoryview:
    """Return the framed answer. Blocking; NotHere."""
    array = open_array(request.blob)
    return memoryview(frame(ANSWER.encode(cut(array, request.spans))))
