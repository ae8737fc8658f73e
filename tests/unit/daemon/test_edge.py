"""What an edge may pass on, what it may bring back, and single deltas of an update."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import trio

from blyan_proto.errors import ProtocolError
from blyan_proto.protocols.edge import (
    MAX_PIECES_BYTES,
    PROTOCOL_ID,
    Addressed,
    Parcel,
    Pieces,
    Replies,
    Span,
)
from blyan_proto.signing import Purpose, SigningKey
from blyand.compute import Threads
from blyand.errors import Unavailable
from blyand.protocols.delta import signed_receipt
from blyand.protocols.edge import (
    Client,
    Ends,
    check_parcel,
    check_pieces,
    check_receipts,
    cut,
    serve,
)
from blyand.protocols.uploads import Uploads
from tests.unit.daemon.test_net_stream import pair
from tests.vectors.make_proto import BUNDLE, KEY, NETWORK, SIGNED_RECEIPT

OTHER = SigningKey(b"\x07" * 32)
PARCEL = Parcel((Addressed(OTHER.account, BUNDLE),))
HERE = b"\x01" * 20


def test_an_edge_passes_on_only_what_its_sender_signed():
    check_parcel(PARCEL, HERE, KEY.public, NETWORK)
    with pytest.raises(ProtocolError, match="somebody else"):
        check_parcel(PARCEL, HERE, OTHER.public, NETWORK)
    check_parcel(
        PARCEL, OTHER.account, OTHER.public, NETWORK
    )  # for the receiver itself


@pytest.mark.parametrize(
    "broken",
    [
        replace(BUNDLE, deltas=()),
        replace(BUNDLE, deltas=(replace(BUNDLE.deltas[0], tokens=1),)),
        replace(BUNDLE, signature=bytes(63) + b"\1"),
        replace(BUNDLE, signer=OTHER.public),
    ],
)
def test_a_bundle_that_is_broken_is_its_bearer_s_fault(broken):
    parcel = Parcel((Addressed(HERE, broken),))
    with pytest.raises(ProtocolError):
        check_parcel(parcel, HERE, KEY.public, NETWORK)


def test_a_receipt_counts_only_by_the_primary_s_key_and_for_its_bundle():
    sent, keys = BUNDLE.manifest, [KEY.public]
    check_receipts(Replies((SIGNED_RECEIPT,)), PARCEL, keys, NETWORK)
    check_receipts(Replies((None,)), PARCEL, keys, NETWORK)
    forged = signed_receipt(OTHER, NETWORK, sent, SIGNED_RECEIPT.verdicts)
    older = signed_receipt(
        KEY, NETWORK, replace(sent, residual=bytes(32)), SIGNED_RECEIPT.verdicts
    )
    for false in ((forged,), (older,), (SIGNED_RECEIPT, None)):
        with pytest.raises(ProtocolError):
            check_receipts(Replies(false), PARCEL, keys, NETWORK)
    with pytest.raises(ProtocolError):
        check_receipts(Pieces((b"",)), PARCEL, keys, NETWORK)


def test_pieces_are_those_asked_for_and_bounded():
    blob = np.arange(200, dtype=np.uint8)
    spans = (Span(190, 10), Span(0, 3), Span(7, 0))
    made = cut(blob, spans)
    assert made.pieces == (bytes(range(190, 200)), bytes(range(3)), b"")
    check_pieces(made, spans)
    with pytest.raises(ProtocolError):
        check_pieces(made, spans[:2])
    with pytest.raises(ProtocolError):
        check_pieces(replace(made, pieces=(b"", b"", b"")), spans)
    for array, asked in (
        (blob, (Span(191, 10),)),
        (blob.astype(np.float32), (Span(0, 1),)),
        (blob.reshape(2, 100), (Span(0, 1),)),
        (np.broadcast_to(blob[:1], (2**27,)), (Span(0, MAX_PIECES_BYTES + 1),)),
    ):
        with pytest.raises(ProtocolError):
            cut(array, asked)


def test_both_ends_over_a_connection():
    """A parcel for the receiver and for another; an edge that is none; single deltas."""
    primary, learner = SigningKey(b"\1" * 32), SigningKey(b"\2" * 32)  # as pair's hosts
    manifest = BUNDLE.manifest
    signature = learner.sign(Purpose.DELTA_BUNDLE, NETWORK, manifest)
    bundle = replace(BUNDLE, signer=learner.public, signature=signature)
    blob = np.arange(200, dtype=np.uint8)

    async def take(one):
        await trio.lowlevel.checkpoint()
        verdicts = SIGNED_RECEIPT.verdicts
        return signed_receipt(primary, NETWORK, one.manifest, verdicts)

    async def forward(far):
        await trio.lowlevel.checkpoint()
        if far[0].to == HERE:
            raise Unavailable("not the edge")
        return [None for _ in far]

    async def main():
        async with pair() as (server, host):
            ends = Ends(take, forward, lambda root: blob)
            lane, uploads = Threads("disk", 1), Uploads()
            handler = serve(NETWORK, primary.account, ends, lane, uploads)
            server.handle(PROTOCOL_ID, handler, bulk=True)
            client = Client(host, NETWORK)
            parcel = Parcel(
                (Addressed(OTHER.account, bundle), Addressed(primary.account, bundle))
            )
            keys = [OTHER.public, primary.public]
            nothing, receipt = await client.hand(server.peer_id, parcel, keys)
            assert nothing is None and receipt.manifest == manifest.digest
            with pytest.raises(Unavailable):
                nobody = Parcel((Addressed(HERE, bundle),))
                await client.hand(server.peer_id, nobody, [OTHER.public])
            spans = [Span(3, 4), Span(100, 2)]
            pieces = await client.pieces(server.peer_id, bytes(32), spans)
            assert pieces == (bytes([3, 4, 5, 6]), bytes([100, 101]))

    trio.run(main)
