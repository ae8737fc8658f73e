"""A damaged database: what it lost is named, and comes back from a peer (DEC-D3, D4)."""

from __future__ import annotations

import os
import random
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import plyvel
import pytest
import trio

from blyan_proto.block.block import Block
from blyan_proto.checkpoint import FinalCheckpoint
from blyan_proto.genesis import Genesis
from blyand.chain import follow, mending
from blyand.chain.audit import check_block, check_checkpoint
from blyand.chain.mending import Givers, Mender
from blyand.errors import Damaged
from blyand.home import Home, create_home
from blyand.store.buckets import entries_agree
from blyand.store.level import mark_damage
from blyand.store.mend import find_holes
from blyand.store.restore import Restore
from blyand.store.schema import (
    BUCKET,
    CHECKPOINT,
    ENTRY,
    EXECUTED,
    HEADER,
    META_CLEAN,
    META_EXECUTED,
    META_HOLES,
    ORDERED,
    PAYLOAD,
    u64,
)
from blyand.stores import Stores, open_stores
from blyand.supervise import leaves
from tests.unit.daemon import restore_world as world
from tests.unit.daemon.chain_world import beat, child_of, sign_block
from tests.unit.daemon.crash_child import DiskNode
from tests.unit.daemon.crash_life import index_keys, rebuilt

CHECKPOINTS, PER_CHECKPOINT = 8, 6
PEER = "peer"


@dataclass
class Past:
    """What a node did before its disk failed, as its peer remembers it."""

    home: Home
    finals: list[FinalCheckpoint]
    blocks: list[Block]
    root: bytes
    genesis: Genesis


@pytest.fixture(scope="module")
def past(tmp_path_factory):
    home = create_home(tmp_path_factory.mktemp("past") / "home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("blyand.finality.beacon.LINKS", 1024)

        async def main(stores: Stores) -> Past:
            node, finals, blocks = DiskNode(home, stores), [], []
            async with node.running(stores.commit.run, node.intake.run):
                for _ in range(CHECKPOINTS):
                    made = [_next(node, blocks, author) for author in (1, 2) * 3]
                    finals.append(await node.order(*made))
                return Past(home, finals, blocks, node.machine.view.root, node.genesis)

        with open_stores(home) as stores:
            made = trio.run(main, stores)
        return made


def _next(node: DiskNode, blocks: list[Block], author: int) -> Block:
    key = node.keys[author]
    own = [block for block in blocks if block.header.author == key.public]
    payload, more = beat(load=len(own)), {"sequence": len(own) + 1}
    block = (
        child_of(node.genesis, key, payload, own[-1], **more)
        if own
        else sign_block(node.genesis, key, payload, **more)
    )
    blocks.append(block)
    return block


@pytest.fixture
def home(past, tmp_path):
    shutil.copytree(past.home.path, tmp_path / "home")
    home = Home(tmp_path / "home")
    with open_stores(home):  # which makes a table of the log
        return home


def biggest(home: Home, pattern: str) -> Path:
    return max(home.database.glob(pattern), key=lambda file: file.stat().st_size)


def truncated(path: Path, rng: random.Random) -> None:
    os.truncate(path, rng.randrange(path.stat().st_size))


def spoiled(path: Path, rng: random.Random) -> None:
    raw = bytearray(path.read_bytes())
    at = rng.randrange(max(1, len(raw) - 600))
    raw[at : at + 600] = rng.randbytes(len(raw[at : at + 600]))
    path.write_bytes(raw)


def gone(path: Path, rng: random.Random) -> None:
    path.unlink()


DAMAGES = [
    (what, how, seed)
    for what, seeds in (("*.log", 2), ("*.ldb", 3), ("MANIFEST-*", 1), ("CURRENT", 1))
    for how in (truncated, spoiled, gone)
    for seed in range(seeds)
]


def settle(home: Home, past: Past) -> None:
    """Start as often as the daemon would; let the peer give what is missing."""
    for _ in range(4):
        try:
            with open_stores(home) as stores:
                trio.run(catch_up, home, past, stores)
                check_whole(stores, past)
                return
        except (Damaged, ExceptionGroup) as error:
            assert all(isinstance(leaf, Damaged) for leaf in leaves(error))
    raise AssertionError("it is damaged again and again")


async def catch_up(home: Home, past: Past, stores: Stores) -> None:
    node = DiskNode(home, stores)
    node.peers = [PEER]
    node.blocks_of[PEER] = past.blocks
    node.finals_of[PEER] = past.finals
    node.pending_of[PEER] = []
    givers = Givers(lambda: node.peers, node._finals_alone, node._blocks, node._blame)
    mender = Mender(
        stores.database, stores.blocks, stores.checkpoints, node.lane, givers
    )
    with trio.fail_after(20):
        async with node.running(
            stores.commit.run, node.intake.run, node.follower.run, mender.run
        ):
            while mender.has_holes or node.machine.clock.height < len(past.finals):
                await trio.sleep(0.01)
    assert node.blamed == []
    assert node.machine.view.root == past.root


def check_whole(stores: Stores, past: Past) -> None:
    """Read everything: all is there that was acknowledged before the damage."""
    assert [stores.blocks.get(block.id) for block in past.blocks] == past.blocks
    heights = range(1, len(past.finals) + 1)
    assert [stores.checkpoints.at(height) for height in heights] == past.finals
    assert all(stores.blocks.outcome(block.id).code == 0 for block in past.blocks)
    assert index_keys(stores.database) == rebuilt(stores.database)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr("blyand.finality.beacon.LINKS", 1024)
    monkeypatch.setattr(follow, "POLL_S", 0.02)
    monkeypatch.setattr(mending, "AGAIN_S", 0.02)


@pytest.mark.parametrize("what, how, seed", DAMAGES)
def test_all_comes_back(past, home, what, how, seed):
    if what == "*.log":
        shutil.copytree(past.home.path, home.path, dirs_exist_ok=True)
    how(biggest(home, what), random.Random(f"{what} {how.__name__} {seed}"))
    settle(home, past)
    with open_stores(home) as stores:
        assert stores.warnings == () and stores.state.root == past.root
        assert stores.database.get(META_HOLES) is None
        check_whole(stores, past)
        assert not any(problems(stores, past))


def problems(stores, past):
    """Yield what `chain verify` says."""
    genesis = past.genesis
    for block in stores.blocks.ids():
        yield check_block(stores.blocks, block, genesis.id)[0]
    for height in range(1, len(past.finals) + 1):
        yield check_checkpoint(
            stores.blocks, stores.checkpoints, stores.sets, genesis, height
        )


def drop(home, *keys):
    """Lose rows as a repair loses them."""
    with open_stores(home) as stores:
        stores.database.write_batch([(key, None) for key in keys], sync=True)
    mark_damage(home.database)


def test_what_is_lost_is_named_and_the_rest_is_served_meanwhile(past, home, caplog):
    headless, empty = past.blocks[7].id, past.blocks[20].id
    drop(home, HEADER + headless, PAYLOAD + headless, PAYLOAD + empty)
    with open_stores(home) as stores:
        assert stores.state.root == past.root  # nothing is executed again
        assert stores.warnings == (
            "the database was damaged and repaired; look at the disk",
        )
        for block in (headless, empty):
            assert f"lost with the damaged database: block {block.hex()}" in caplog.text
        holes = find_holes(stores.blocks, stores.checkpoints)
        assert set(holes.blocks) == {headless, empty} and not holes.checkpoints
        assert index_keys(stores.database) == rebuilt(stores.database)
        said = {one for one in problems(stores, past) if one}
        assert f"it orders block {headless.hex()[:16]}, which is not here" in said
        assert "payload is gone" in str(
            check_block(stores.blocks, empty, past.genesis.id, mending=True)
        )
    with open_stores(home) as stores:  # a kill in between forgets nothing
        assert stores.database.get(META_HOLES) is not None
        trio.run(catch_up, home, past, stores)
        check_whole(stores, past)


def test_lost_checkpoints_come_back_by_the_one_above_them(past, home):
    drop(home, *(CHECKPOINT + u64(height) for height in (1, 2, 3, 5, 7)))
    with open_stores(home) as stores:
        assert stores.state.root == past.root
        trio.run(catch_up, home, past, stores)
        check_whole(stores, past)


@pytest.mark.parametrize("row", [ORDERED, EXECUTED, CHECKPOINT + u64(CHECKPOINTS)])
def test_lost_execution_is_done_again(past, home, row):
    with open_stores(home) as stores:
        key = next(key for key, _ in stores.database.scan(row))
    drop(home, key, PAYLOAD + past.blocks[3].id)
    with open_stores(home) as stores:
        assert "executed again" in stores.warnings[-1]
        trio.run(catch_up, home, past, stores)
        check_whole(stores, past)


def test_forgetting_what_was_executed_may_be_interrupted(past, home):
    with open_stores(home) as stores:
        rows = [key for key, _ in stores.database.scan(EXECUTED)]
        lost = [META_EXECUTED, *rows[::2], *(row for row in rows if b"clock" in row)]
        stores.database.write_batch([(key, None) for key in lost], sync=True)
    settle(home, past)


def test_a_lost_outcome_of_a_lost_checkpoint_is_noticed_later(past, home):
    drop(home, CHECKPOINT + u64(2), ORDERED + past.finals[1].checkpoint.blocks[0])
    settle(home, past)
    with open_stores(home) as stores:
        check_whole(stores, past)


def test_a_peer_that_gives_something_else_is_blamed(past, home):
    drop(home, CHECKPOINT + u64(3), PAYLOAD + past.blocks[-1].id)
    blamed = []

    async def main(stores):
        node = DiskNode(home, stores)
        lie = replace(past.finals[2].checkpoint, time_ms=1)
        node.peers = ["liar", "thief", PEER]
        node.finals_of = {"liar": [node.sealed(lie)], "thief": past.finals}
        honest, other = past.blocks[-1], past.blocks[0].signature
        node.blocks_of = {
            "liar": [replace(honest, signature=other)],
            "thief": [replace(honest, payload=b"")],
            PEER: [honest],
        }
        givers = Givers(
            lambda: node.peers,
            node._finals_alone,
            node._blocks,
            lambda peer, error: blamed.append(peer),
        )
        mender = Mender(
            stores.database, stores.blocks, stores.checkpoints, node.lane, givers
        )
        with trio.fail_after(10):
            async with node.running(mender.run):
                while mender.has_holes:
                    await trio.sleep(0.01)

    with open_stores(home) as stores:
        trio.run(main, stores)
        check_whole(stores, past)
    assert set(blamed) == {"liar", "thief"}


def test_reading_what_is_damaged_says_so_and_the_next_start_repairs_it(past, home):
    spoiled(biggest(home, "*.ldb"), random.Random(3))
    with pytest.raises(Damaged, match="damaged"), open_stores(home) as stores:
        list(stores.database.scan(b""))
    with open_stores(home) as stores:
        assert stores.database.repaired


def change(home, row, at=0, *, cleanly=True):
    """Let the disk hold something else than was written, with good checksums."""
    with open_stores(home) as stores:
        key, value = next(iter(stores.database.scan(row)))
        wrong = bytearray(value)
        wrong[at] ^= 1
        stores.database.write_batch([(key, bytes(wrong))], sync=True)
    if not cleanly:
        raw = plyvel.DB(str(home.database))
        raw.delete(META_CLEAN)
        raw.close()


@pytest.mark.parametrize(
    "row, at, cleanly",
    [(BUCKET, 0, True), (BUCKET, -1, False), (ENTRY, 0, False), (ENTRY, -1, False)],
)
def test_wrong_hashes_of_the_state_are_made_anew(past, home, row, at, cleanly, caplog):
    change(home, row, at, cleanly=cleanly)
    for said in (True, False):
        with open_stores(home) as stores:
            assert stores.warnings == () and stores.state.root == past.root
            assert entries_agree(stores.database, past.root)
        assert ("made anew" in caplog.text) == said
        caplog.clear()


def test_a_value_that_changed_is_found_after_a_kill(past, home):
    change(home, EXECUTED)
    with open_stores(home) as stores:  # after a stop in order it is not read
        assert stores.warnings == ()
        height, root = stores.checkpoints.stored_state_root()
        assert height == CHECKPOINTS and root != past.root  # but `chain verify` does
    raw = plyvel.DB(str(home.database))
    raw.delete(META_CLEAN)
    raw.close()
    with open_stores(home) as stores:
        assert "executed again" in stores.warnings[-1]
        trio.run(catch_up, home, past, stores)
        check_whole(stores, past)


def test_a_restore_under_way_survives_a_stop_and_not_a_repair(past, home):
    target = world.donor(30)
    final = world.final_of(target.root, height=99)
    with open_stores(home) as stores:
        restore = Restore.begin(
            stores.database, final.checkpoint, target.freeze().manifest
        )
        missing = restore.missing()
        world.fetch(restore, target.freeze(), missing[0])
    with open_stores(home) as stores:
        assert Restore.resume(stores.database).missing() == missing[1:]
        assert stores.state.root == past.root
    mark_damage(home.database)
    with open_stores(home) as stores:
        assert Restore.resume(stores.database) is None
        assert not any(row[:1] in b"xtuY" for row, _ in stores.database.scan(b""))
        assert stores.state.root == past.root
