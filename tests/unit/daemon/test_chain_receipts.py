"""Receipts for blobs of pending updates, and what may be ordered with them (DEC-A4)."""

from __future__ import annotations

import pytest
import trio

from blyan_proto.block.block import Block
from blyan_proto.checkpoint import BlobReceipt, Receipts, ReceiptStatement
from blyan_proto.codec import encode
from blyan_proto.constants import FORMAT_VERSION
from blyan_proto.errors import BadSignature, ProtocolError, UnexpectedMessage
from blyan_proto.signing import Purpose
from blyand.chain import receipts as kept
from blyand.chain.orderable import Orderable
from blyand.net.gossip import Verdict
from blyand.rules.model.election import ranks
from tests.sim.network import InlineLane
from tests.unit.daemon.chain_world import Training, dataset, key
from tests.unit.daemon.test_rules_signatures import beating

LIVENESS_MS = 10_000


class Node:
    """What a validator without blobs knows."""

    def __init__(self) -> None:
        self.world = Training(nodes=5)
        self.run = self.world.open()
        self.pending: dict[bytes, Block] = {}
        self.blobs: set[bytes] = set()
        self.asked: list[bytes] = []
        self.receipts = kept.Receipts(
            self.world.genesis.id,
            lambda: self.world.view,
            self.pending.get,
            InlineLane(),
        )
        self.orderable = Orderable(
            lambda: self.world.view,
            self.blobs.__contains__,
            lambda blob, account: self.asked.append(blob),
            self.receipts,
            LIVENESS_MS,
        )

    def update(self, **changed) -> Block:
        block = self.world.update(self.run, 3, **changed)
        self.pending[block.id] = block
        return block

    def others(self, block: Block) -> list:
        """Return the holders' keys that did not sign a block."""
        signed = {one.signer for one in block.content.cosignatures}
        return [one for one in self.world.keys if one.public not in signed]

    def receipt(self, block: Block, signer, network=None) -> BlobReceipt:
        statement = ReceiptStatement(FORMAT_VERSION, block.id)
        network = network or self.world.genesis.id
        signature = signer.sign(Purpose.BLOB_RECEIPT, network, statement)
        return BlobReceipt(block.id, signer.public, signature)

    def hears(self, *receipts: BlobReceipt) -> Verdict:
        ordered = sorted(receipts, key=lambda one: (one.block, one.signer))
        raw = encode(Receipts(tuple(ordered)))
        return trio.run(self.receipts.gossip_check, "peer", raw)


@pytest.fixture
def node():
    return Node()


def lonely(node):
    """Return an update of which time allows one signature: nobody else beats."""
    block = node.update(signatures=1)
    author = node.world.author_of(block.header.author)
    for _ in range(3):
        beating(node.world, author)
    return block


def test_who_cosigned_has_the_deltas(node):
    block = node.update()
    assert node.orderable.may_order(block)
    assert not node.asked and node.orderable.receipts_for([block]) == ()


def test_one_signature_waits_for_blobs_or_for_a_receipt(node):
    block = lonely(node)
    assert not node.orderable.may_order(block)
    assert node.asked == [block.content.blob]
    node.blobs.add(block.content.blob)
    assert node.orderable.may_order(block)
    node.blobs.clear()
    receipt = node.receipt(block, node.others(block)[0])
    assert node.hears(receipt) is Verdict.ACCEPT
    assert node.hears(receipt) is Verdict.IGNORE
    assert node.orderable.may_order(block)
    assert node.orderable.receipts_for([block]) == (receipt,)


def test_signatures_that_are_none_vouch_for_nothing(node):
    false = node.world.draft(node.run, 3, signatures=2)
    first, second = false.cosignatures
    fields = {name: getattr(false, name) for name in false.__dataclass_fields__}
    fields["cosignatures"] = (first, type(second)(second.signer, bytes(64)))
    author = node.world.author_of(first.signer)
    block = node.world.block(type(false)(**fields), author)
    assert not node.orderable.may_order(block)


def test_receipts_of_strangers_for_unknown_blocks_or_twice_are_not_kept(node):
    block = lonely(node)
    assert node.hears(node.receipt(block, key("stranger"))) is Verdict.IGNORE
    author = node.world.author_of(block.header.author)
    unknown = node.world.block(block.content, author)
    assert node.hears(node.receipt(unknown, node.others(block)[0])) is Verdict.IGNORE
    assert not node.receipts.of(block.id) and not node.receipts.of(unknown.id)


def test_false_receipts_are_their_senders_fault(node):
    block = lonely(node)
    false = node.receipt(block, node.others(block)[0], network=bytes(32))
    with pytest.raises(BadSignature):
        node.hears(false)
    with pytest.raises(ProtocolError):
        trio.run(node.receipts.gossip_check, "peer", b"\x91\x90")
    with pytest.raises(BadSignature):
        trio.run(node.receipts.take, (false,))
    assert not node.receipts.of(block.id)


def test_a_proposals_receipts_count_once_they_are_checked(node):
    block = lonely(node)
    found = [node.receipt(block, one) for one in node.others(block)]
    found.sort(key=lambda one: one.signer)
    with pytest.raises(UnexpectedMessage):
        trio.run(node.receipts.take, found[::-1])
    trio.run(node.receipts.take, found)
    assert list(node.receipts.of(block.id)) == found
    assert node.orderable.may_order(block)


def test_what_is_kept_is_bounded(node, monkeypatch):
    monkeypatch.setattr(kept, "MAX_BLOCKS", 2)
    blocks = [node.update(signatures=1, lease_epoch=epoch) for epoch in range(4)]
    ranked = {s.key for s in ranks(node.world.schedule(node.run, 0), 3)}
    signer = next(one for one in node.world.keys if one.public in ranked)
    del node.pending[blocks[0].id]
    for block in blocks:
        node.receipts.put(node.receipt(block, signer))
    counts = [len(node.receipts.of(block.id)) for block in blocks]
    assert counts == [0, 0, 1, 1]


def test_other_blocks_need_their_blobs_here(node):
    found = node.world.block(dataset(name="another"))
    assert not node.orderable.may_order(found)
    assert node.asked == [found.content.blob]
    node.blobs.add(found.content.blob)
    assert node.orderable.may_order(found)
