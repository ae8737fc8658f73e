"""The block DAG: the same on every node, whatever came when; and what can never enter it."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import msgpack
import pytest
import trio

from blyan_proto.block import header as headers
from blyan_proto.block.block import Block, decode_block, encode_block
from blyan_proto.constants import MAX_BLOCK_BYTES
from blyan_proto.errors import DecodeError, LimitExceeded, ProtocolError
from blyan_proto.types import Chain
from blyand.chain import orphans
from blyand.rules.chain.intake import ParentUnknown, check
from blyand.rules.chain.order import order
from blyand.rules.verdict import Ignore, Reject
from blyand.store.blocks import BlockStore
from blyand.store.memory import MemoryStore
from blyand.store.schema import AUTHOR, CHILD, HEADER, PAYLOAD, PENDING, PLACE
from tests.unit.daemon.chain_node import Node, run, until
from tests.unit.daemon.chain_world import (
    START_MS,
    beat,
    child_of,
    dataset,
    genesis_of,
    sign_block,
)

CURVE_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
SEEDS = range(12)


@pytest.fixture(autouse=True)
def short_beacons(monkeypatch):
    monkeypatch.setattr("blyand.finality.beacon.LINKS", 1024)


def node_in(folder: Path, name: str) -> Node:
    (folder / name).mkdir()
    return Node(folder / name)


def random_dag(node: Node, source: random.Random, count: int) -> list[Block]:
    """Return blocks of two chains on random earlier ones, some of them twins."""
    made: dict[Chain, list[Block]] = defaultdict(list)
    used: dict[tuple[int, Chain], int] = defaultdict(int)
    for number in range(count):
        author = source.randrange(3)
        chain = source.choice((Chain.LEDGER, Chain.DATASETS))
        payload = beat(load=number)
        if chain is Chain.DATASETS:
            payload = dataset(name=f"set {number}")
        if not used[author, chain] or source.random() < 0.9:
            used[author, chain] += 1  # else a twin of the author's block before
        more = {"sequence": used[author, chain]}
        before = made[chain]
        parents = source.sample(before, min(len(before), source.randrange(0, 9)))
        key = node.keys[author]
        block = sign_block(node.genesis, key, payload, **more)
        if parents:
            block = child_of(node.genesis, key, payload, *parents, **more)
        before.append(block)
    return [block for blocks in made.values() for block in blocks]


async def pour(node: Node, blocks: list[Block], source: random.Random) -> None:
    """Give a node blocks in random order: alone, in answers, by gossip, some twice."""
    mixed = blocks + source.sample(blocks, len(blocks) // 4)
    source.shuffle(mixed)
    while mixed:
        size = source.randrange(1, 12)
        some, mixed = mixed[:size], mixed[size:]
        way = source.randrange(3)
        if way == 0:
            for one in await node.intake.submit_many(some, "peer"):
                assert one.error is None or isinstance(one.error, ParentUnknown)
            continue
        for block in some:
            if way == 1:
                await node.intake.gossip_check("peer", encode_block(block))
                continue
            try:
                await node.intake.submit(block, "peer")
            except ParentUnknown:
                pass


def shape(store: MemoryStore) -> list[tuple[bytes, bytes]]:
    """Return the blocks and their indexes, without how and when they came.

    Which blobs they name is retention's index, made again in the background.
    """
    return [
        (key, b"" if key[:1] == PENDING else value)
        for key, value in store.scan(b"")
        if key[:1] in (HEADER, PAYLOAD, PENDING, PLACE, AUTHOR, CHILD)
    ]


def tips(node: Node) -> set[bytes]:
    return {id for id in node.blocks.ids() if not node.blocks.children(id)}


def twins(blocks: list[Block]) -> set[tuple[bytes, Chain]]:
    """Return the authors and chains on which some sequence has two blocks."""
    counted: dict[tuple[bytes, Chain, int], int] = defaultdict(int)
    for block in blocks:
        header = block.header
        counted[header.account, header.chain, header.sequence] += 1
    return {(account, chain) for (account, chain, _), n in counted.items() if n > 1}


@pytest.mark.parametrize("seed", SEEDS)
def test_nodes_agree_whatever_came_when(tmp_path, seed):
    """In all the same: blocks, heights, tips, children, order; and what a reindex gives."""

    async def main():
        source = random.Random(seed)
        nodes = [node_in(tmp_path, f"node{n}") for n in range(3)]
        made = random_dag(nodes[0], source, 60)
        nodes[1].blocks_of["peer"] = made  # who gives ancestors; the others do not
        for node in nodes:
            async with node.running():
                await pour(node, made, source)
                await until(lambda: len(node.pool) == len(made))
                assert not len(node.intake._orphans) and not node.blamed
        shapes = [shape(node.store) for node in nodes]
        assert shapes[0] == shapes[1] == shapes[2], f"seed {seed}"
        assert tips(nodes[0]) == tips(nodes[1]) == tips(nodes[2])
        orders = [[block.id for block in order(node.pool)] for node in nodes]
        assert orders[0] == orders[1] == orders[2], f"seed {seed}"
        for node in nodes:
            proofs = node.blocks.equivocations
            found = {(p.first.header.account, p.first.header.chain) for p in proofs}
            assert found == twins(made)
            for chain in (Chain.LEDGER, Chain.DATASETS):
                seen: set[bytes] = set()
                for id, header in node.blocks.headers(chain):
                    assert set(header.parents) <= seen, "parents come before children"
                    seen.add(id)
        before = shape(nodes[0].store)
        kept = [(k, v) for k, v in nodes[0].store.scan(b"") if k[:1] in b"BL"]
        bare = MemoryStore()
        bare.write_batch(kept, sync=True)
        assert BlockStore(bare).reindex() == len(made)
        assert shape(bare) == before, "rebuilt = incremental"

    run(main)


def test_a_block_costs_the_same_on_a_long_chain(tmp_path, monkeypatch):
    """Counted in questions to the database, not in time (CHAIN-07)."""
    node = node_in(tmp_path, "node")
    asked = 0

    def counted(real):
        def ask(*args, **more):
            nonlocal asked
            asked += 1
            return real(*args, **more)

        return ask

    async def main():
        nonlocal asked
        made = [sign_block(node.genesis, node.keys[1], beat())]
        for n in range(1, 1500):
            made.append(
                child_of(
                    node.genesis, node.keys[1], beat(load=n), made[-1], sequence=n + 1
                )
            )
        monkeypatch.setattr(node.store, "get", counted(node.store.get))
        monkeypatch.setattr(node.store, "scan", counted(node.store.scan))
        costs = []
        for block in made[:30]:
            asked = 0
            await node.intake.submit(block, "a", is_final=True)
            costs.append(asked)
        await node.intake.submit_many(made[30:1470], "a", is_final=True)
        for block in made[1470:]:
            asked = 0
            await node.intake.submit(block, "a", is_final=True)
            costs.append(asked)
        assert len(set(costs[1:])) == 1 and costs[1] < 12, costs

    run(main)


# What never enters


@pytest.fixture
def node(tmp_path):
    return node_in(tmp_path, "node")


def with_ids(monkeypatch, ids: dict[int, bytes]) -> None:
    """Let headers with these nonces have these ids, as if blake3 were broken."""
    real = headers._id
    monkeypatch.setattr(headers, "_id", lambda h: ids.get(h.nonce) or real(h))


def crafted(node: Node, nonce: int, height: int, *parents: bytes) -> Block:
    return sign_block(
        node.genesis,
        node.keys[1],
        beat(load=nonce),
        nonce=nonce,
        height=height,
        parents=tuple(sorted(parents)),
        sequence=nonce,
    )


@pytest.mark.parametrize("height", [0, 1, 2, 2**63])
def test_a_block_that_is_its_own_parent_is_rejected(node, monkeypatch, height):
    with_ids(monkeypatch, {7: b"\7" * 32})

    async def main():
        with pytest.raises(Reject, match="its own parent"):
            await node.intake.submit(crafted(node, 7, height, b"\7" * 32), "liar")
        assert not node.blocks.ids() and not len(node.intake._orphans)

    run(main)


@pytest.mark.parametrize("heights", [(1, 1), (1, 2), (2, 1), (5, 6)])
@pytest.mark.parametrize("together", [True, False])
def test_no_cycle_enters(node, monkeypatch, heights, together):
    """Though ids were free to choose: heights have to grow along every edge."""
    with_ids(monkeypatch, {1: b"\1" * 32, 2: b"\2" * 32})

    async def main():
        cycle = [
            crafted(node, 1, heights[0], b"\2" * 32),
            crafted(node, 2, heights[1], b"\1" * 32),
        ]
        node.blocks_of["liar"] = cycle
        async with node.running():
            if together:
                outcomes = await node.intake.submit_many(cycle, "liar")
                assert all(one.error is not None for one in outcomes)
            else:
                for block in cycle:
                    raw = encode_block(block)
                    await node.intake.gossip_check("liar", raw)
            await trio.sleep(60)
            honest = sign_block(node.genesis, node.keys[2], beat())
            await node.intake.submit(honest, "a")
        assert node.blocks.ids() == [honest.id]

    run(main)


def test_a_longer_cycle_waits_until_it_is_forgotten(node, monkeypatch):
    ids = {n: bytes([n]) * 32 for n in range(1, 6)}
    with_ids(monkeypatch, ids)

    async def main():
        for n in range(1, 6):
            before = ids[n - 1] if n > 1 else ids[5]
            with pytest.raises(Ignore):
                await node.intake.submit(crafted(node, n, n, before), "liar")
        assert len(node.intake._orphans) == 5
        await trio.sleep(orphans.ORPHAN_S + 1)
        lone = crafted(node, 9, 1, b"\x63" * 32)
        with pytest.raises(Ignore):
            await node.intake.submit(lone, "liar")
        assert len(node.intake._orphans) == 1 and not node.blocks.ids()

    run(main)


def high_s(block: Block) -> Block:
    """The other signature that ECDSA accepts for the same statement."""
    s = CURVE_ORDER - int.from_bytes(block.signature[32:], "big")
    return replace(block, signature=block.signature[:32] + s.to_bytes(32, "big"))


@pytest.mark.parametrize("height", [0, 1, 3, 4, 2**64 - 1])
def test_every_lie_about_the_height_is_rejected(node, height):
    async def main():
        low = sign_block(node.genesis, node.keys[1], beat())
        high = child_of(node.genesis, node.keys[1], beat(load=1), low, sequence=2)
        payload, parents = beat(load=2), tuple(sorted((low.id, high.id)))
        lie = sign_block(
            node.genesis,
            node.keys[1],
            payload,
            parents=parents,
            height=height,
            sequence=3,
        )
        await node.intake.submit_many([low, high], "a")
        with pytest.raises(Reject, match="height"):
            await node.intake.submit(lie, "a")
        truth = sign_block(
            node.genesis, node.keys[1], payload, parents=parents, height=2, sequence=3
        )
        await node.intake.submit(truth, "a")

    run(main)


def test_a_malleated_signature_and_a_foreign_network_are_rejected(node):
    made = sign_block(node.genesis, node.keys[1], beat())
    check(made, node.genesis, START_MS)
    with pytest.raises(Reject, match="high-S"):
        check(high_s(made), node.genesis, START_MS)
    foreign = genesis_of(node.keys, bytes(32), name="another")
    theirs = sign_block(foreign, node.keys[1], beat())
    with pytest.raises(Reject, match="another network"):
        check(theirs, node.genesis, START_MS)
    moved = replace(theirs, header=replace(theirs.header, network=node.genesis.id))
    with pytest.raises(Reject, match="signature"):
        check(moved, node.genesis, START_MS)


def other_encodings(raw: bytes) -> dict[str, bytes]:
    """The same block in bytes that a lax decoder would accept."""
    value = msgpack.unpackb(raw, raw=False)
    header, signature, payload = value
    packed = msgpack.Packer(use_bin_type=True).pack
    height = header[4]
    assert height < 128
    wide = raw.replace(
        bytes([height]) + b"\x90", b"\xcc" + bytes([height]) + b"\x90", 1
    )
    return {
        "an integer in two bytes": wide,
        "bytes as text": packed([header, signature, payload.decode("latin-1")]),
        "more after it": raw + b"\xc0",
        "a map": packed({0: header, 1: signature, 2: payload}),
        "a field more": packed([*value, None]),
        "a field less": packed(value[:2]),
        "a float": packed([[*header[:4], 0.0, *header[5:]], signature, payload]),
        "true for one": packed([[True, *header[1:]], signature, payload]),
        "a negative number": packed(
            [[*header[:4], -1, *header[5:]], signature, payload]
        ),
        "a long form of the array": b"\xdc\x00\x03" + raw[1:],
        "nothing": b"",
        "cut": raw[:-1],
    }


def test_another_encoding_of_a_block_is_the_senders_fault(node):
    async def main():
        raw = encode_block(sign_block(node.genesis, node.keys[1], beat()))
        for name, wrong in other_encodings(raw).items():
            assert wrong != raw, name
            with pytest.raises(DecodeError):
                decode_block(wrong)
            with pytest.raises(ProtocolError):
                await node.intake.gossip_check("liar", wrong)

    run(main)


def test_a_block_that_is_too_large_is_not_even_read(node):
    with pytest.raises(LimitExceeded):
        decode_block(bytes(MAX_BLOCK_BYTES + 1))
