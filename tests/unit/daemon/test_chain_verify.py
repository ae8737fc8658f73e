"""chain.verify: a sound disk is sound, and each kind of damage is named."""

from __future__ import annotations

import numpy as np
import pytest
import trio

from blyan_proto.block.header import SignedHeader
from blyan_proto.codec import encode
from blyan_proto.rpc.methods import all_methods
from blyan_tile.tblock import outline_of
from blyand.chain.audit import check_block, check_checkpoint
from blyand.compute import Threads
from blyand.rpc import verify
from blyand.rpc.bind import Answers
from blyand.rpc.chain import ChainView
from blyand.store.blobs import BlobStore
from blyand.store.schema import (
    EXECUTED,
    HEADER,
    ORDERED,
    PAYLOAD,
    checkpoint_key,
)
from tests.unit.daemon.chain_node import Node, run
from tests.unit.daemon.chain_world import beat, replace, sign_block

METHODS = all_methods()


@pytest.fixture(autouse=True)
def short_beacons(monkeypatch):
    monkeypatch.setattr("blyand.finality.beacon.LINKS", 1024)


@pytest.fixture
def node(tmp_path):
    """A node with three checkpoints of one block each."""
    made = Node(tmp_path)
    made.mine = []

    async def main():
        for n in range(3):
            parents = {one.id: one.header.height for one in made.mine[-1:]}
            block = sign_block(
                made.genesis,
                made.keys[1],
                beat(load=n),
                sequence=n + 1,
                parents=tuple(parents),
                height=n,
            )
            await made.order(block)
            made.mine.append(block)

    run(main)
    made.blobs = BlobStore(tmp_path / "blobs")
    yield made
    made.blobs.close()


def verified(node, **params):
    """Call the method; return its result and the stages it reported."""
    answers = Answers(METHODS)
    verify.bind(
        answers,
        genesis=node.genesis,
        seen=ChainView(node.blocks, node.checkpoints, node.pool),
        sets=node.sets,
        blobs=node.blobs,
        state_root=node.checkpoints.stored_state_root,
        lane=Threads("test", 1),
    )
    method = METHODS["chain.verify"]
    items = []

    async def emit(item):
        items.append(method.write_item(item))

    async def main():
        return await answers["chain.verify"](method.params(**params), emit)

    result = trio.run(main)
    assert method.read_result(method.write_result(result)) == result
    return result, [item["stage"] for item in items]


def keep_blob(node):
    tile = np.arange(200_000, dtype=np.float32)
    node.blobs.put_array(tile)
    return outline_of(tile).root


def test_a_sound_disk(node):
    keep_blob(node)
    result, stages = verified(node)
    assert result.sound and result.problems == []
    assert (result.blocks, result.checkpoints, result.blobs) == (3, 3, 1)
    assert stages == ["checking blocks", "checking checkpoints", "hashing blobs"]
    assert verified(node, blobs=False)[0].blobs == 0


def test_a_pruned_payload_is_no_damage(node):
    pruned, lost, _ = node.mine
    node.store.write_batch(node.blocks.prune([pruned.id], 9), sync=True)
    result, _ = verified(node)
    assert result.sound and result.pruned == 1
    node.store.write_batch([(PAYLOAD + lost.id, None)], sync=True)
    result, _ = verified(node)
    (problem,) = result.problems
    assert problem.id == lost.id and "not pruned" in problem.problem
    assert result.pruned == 1


def test_damage_of_every_kind_is_named(node):
    first, second, third = node.mine
    root = keep_blob(node)
    path = node.blobs.path(root)
    path.chmod(0o600)
    raw = bytearray(path.read_bytes())
    raw[300_000] ^= 1
    path.write_bytes(raw)
    (key, value), *_ = node.store.scan(EXECUTED)
    final = node.checkpoints.at(2)
    forged = replace(final, votes=(replace(final.votes[0], signature=bytes(64)),))
    node.store.write_batch(
        [
            (PAYLOAD + first.id, encode(beat(load=77))),
            (HEADER + second.id, encode(SignedHeader(second.header, bytes(64)))),
            (ORDERED + third.id, None),
            (checkpoint_key(2), encode(forged)),
            (key, value + b"\0"),
        ],
        sync=True,
    )
    result, _ = verified(node)
    assert not result.sound
    told = {(one.what, one.id): one.problem for one in result.problems}
    assert {what for what, _ in told} == {"block", "checkpoint", "state", "blob"}
    assert "payload" in told["block", first.id]
    assert "sign" in told["block", second.id]
    assert "not noted" in told["checkpoint", node.checkpoints.at(3).checkpoint.id]
    assert "damaged" in told["blob", root]
    assert len(told) == 6 and not node.blobs.has(root)


def test_a_header_under_another_id_and_a_lost_parent(node):
    first, second, _ = node.mine
    network = node.genesis.id
    lie = encode(SignedHeader(first.header, first.signature))
    node.store.write_batch([(HEADER + b"x" * 32, lie)], sync=True)
    assert "digest" in check_block(node.blocks, b"x" * 32, network)[0]
    node.store.write_batch([(HEADER + first.id, None)], sync=True)
    assert "parent" in check_block(node.blocks, second.id, network)[0]
    problem = check_checkpoint(
        node.blocks, node.checkpoints, node.sets, node.genesis, 1
    )
    assert "not here" in problem
    node.store.write_batch([(HEADER + second.id, b"\xc1")], sync=True)
    assert check_block(node.blocks, second.id, network)[0]
    assert check_block(node.blocks, second.id, b"n" * 32)[0]
