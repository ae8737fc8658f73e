"""Six daemons, split in two halves by bans; each half goes on, then they meet again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from blyan_proto.block.block import Block, encode_block
from blyan_proto.block.economy import Heartbeat
from blyan_proto.block.work import FIRST_NONCE, find_nonce
from blyan_proto.constants import FORMAT_VERSION
from blyan_proto.genesis import Genesis
from blyan_proto.protocols.blocks import PROTOCOL_ID
from blyan_proto.signing import Purpose, SigningKey
from blyand import genesis as genesis_file
from blyand.chain.intake import Intake, Sources
from blyand.chain.pool import Pool
from blyand.clock import SystemClock
from blyand.events import Broadcast
from blyand.poison import PoisonBox
from blyand.store.blocks import BlockStore
from blyand.store.db import open_store
from tests.functional.harness import Daemon, Network, network, wait_for
from tests.functional.processes import is_running
from tests.long import long
from tests.sim.network import InlineCommit, InlineLane
from tests.unit.daemon.chain_world import child_of, sign_block

pytestmark = [pytest.mark.functional, long]

AUTHORS, EACH = 4, 120  # of each half


@pytest.fixture
def net(tmp_path: Path):
    with network(tmp_path / "d", 6, validators=1) as made:
        wait_for(lambda: all(n.status()["peers"] == 5 for n in made.nodes), "all meet")
        yield made


def made_by(genesis: Genesis, half: int) -> list[Block]:
    """Return the blocks of authors that only one half has heard of."""
    blocks = []
    for author in range(AUTHORS):
        key = SigningKey(bytes([half + 1, author + 1]) * 16)
        chain: list[Block] = []
        for number in range(EACH):
            beat = Heartbeat(FORMAT_VERSION, None, b"", number)
            fields = {"sequence": number + 1, "time_ms": genesis.time_ms}
            made = (
                child_of(genesis, key, beat, chain[-1], **fields)
                if chain
                else sign_block(genesis, key, beat, **fields)
            )
            chain.append(worked(genesis, key, made))
        blocks += chain
    return blocks


def worked(genesis: Genesis, key: SigningKey, block: Block) -> Block:
    """Return a block with the nonce that strangers owe."""
    bits = genesis.parameters.work_bits
    nonce = find_nonce(block.header, bits, FIRST_NONCE, 1 << 20)
    assert nonce is not None
    header = replace(block.header, nonce=nonce)
    return Block(header, key.sign(Purpose.BLOCK, genesis.id, header), block.payload)


def put(node: Daemon, genesis: Genesis, blocks: list[Block]) -> None:
    """Write blocks into the database of a node that is down, as if they had come."""
    store = open_store(node.home / "db")
    lane, commit = InlineLane(), InlineCommit(store)  # type: ignore[arg-type]
    intake = Intake(
        genesis,
        BlockStore(store),
        commit,  # type: ignore[arg-type]
        Pool(),
        Broadcast(),
        SystemClock(),
        lane,  # type: ignore[arg-type]
        PoisonBox(node.home / "poison"),
        Sources(None, None),  # type: ignore[arg-type]
    )

    async def fill() -> None:
        for block in blocks:
            await intake.submit(block, "the test")

    try:
        trio.run(fill)
    finally:
        store.close()


def split(net: Network) -> None:
    """Let each node of a half ban the other half, and stop them all."""
    for place, node in enumerate(net.nodes):
        for other in net.nodes[3:] if place < 3 else net.nodes[:3]:
            node.call("peer.ban", peer_id=other.peer_id)
    for node in net.nodes:
        node.call("node.stop")
        wait_for(lambda: not is_running(node.pid), f"{node.name} ends")


def heal(net: Network) -> None:
    for place, node in enumerate(net.nodes):
        for other in net.nodes[3:] if place < 3 else net.nodes[:3]:
            node.call("peer.unban", peer_id=other.peer_id)
    pairs = [(one, other) for one in net.nodes[:3] for other in net.nodes[3:]]
    with ThreadPoolExecutor(len(pairs)) as together:
        for one, other in pairs:
            together.submit(one.call, "peer.connect", address=other.address)


def sent(node: Daemon) -> int:
    told = node.call("node.traffic")["protocols"]
    return sum(one["up_bytes"] for one in told if one["protocol"] == PROTOCOL_ID)


def standing(node: Daemon) -> tuple[object, ...]:
    tips = node.call("chain.tips")
    return tips["checkpoint"], tips["pending"], str(tips["chains"])


def test_what_two_halves_lack_crosses_the_wire_once(net: Network):
    genesis = genesis_file.load(net[0].home / "genesis.json")
    split(net)
    made = [made_by(genesis, half) for half in range(2)]
    for place, node in enumerate(net.nodes):
        put(node, genesis, made[place // 3])
    for node in net.nodes:
        node.start()
    here, away = net.nodes[:3], net.nodes[3:]
    count = AUTHORS * EACH

    def ordered(node: Daemon) -> int:
        blocks: int = node.call("chain.stats")["blocks"]
        return blocks

    wait_for(lambda: all(ordered(n) >= count for n in here), "one half goes on")
    for node in away:
        assert node.call("chain.tips")["pending"] >= count
    before = [sent(node) for node in net.nodes]
    lacks = sum(len(encode_block(block)) for half in made for block in half)
    assert lacks >= 2 * 100_000
    heal(net)
    wait_for(lambda: all(ordered(n) >= 2 * count for n in net.nodes), "both orders")
    wait_for(lambda: len({standing(n) for n in net.nodes}) == 1, "all are level")
    for node in net.nodes:
        assert node.call("chain.sync")["checkpoint"] > 0
    told = [sent(node) - was for node, was in zip(net.nodes, before)]
    print(f"sent {told}, the halves differ by {lacks}")
    assert max(told) <= 1.5 * lacks, told
    assert sum(told) <= 1.5 * 3 * lacks, told
