"""A restored node signs nothing before its peers have shown what it had signed (DEC-A9)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import trio

from blyand import settling
from blyand.finality.memory import Memory
from blyand.home import create_home
from blyand.store.intents import SLOT_BYTES, IntentLog
from tests.unit.daemon.chain_node import Node, run, until
from tests.unit.daemon.chain_world import beat


@pytest.fixture(autouse=True)
def short_beacons(monkeypatch):
    monkeypatch.setattr("blyand.finality.beacon.LINKS", 1024)


def restored(node, path):
    """Return the parts of a node's base that settling looks at, of a restored home."""
    home = create_home(path)
    home.restored.write_text("")
    node.author._settled = trio.Event()
    return SimpleNamespace(
        home=home,
        key=node.keys[node.me],
        keys=(node.keys[node.me],),
        stores=SimpleNamespace(blocks=node.blocks, intents=node.intents),
        disk_lane=node.lane,
        alarms={},
        settled=node.author._settled,
        is_amnesic=True,
    )


def test_what_was_signed_after_the_backup_is_learned_first(tmp_path):
    (tmp_path / "before").mkdir()
    (tmp_path / "after").mkdir()
    before = Node(tmp_path / "before", me=1)
    after = Node(tmp_path / "after", me=1)  # knows nothing of it

    async def main():
        blocks = [await before.author.make(beat(load=n)) for n in range(3)]
        base = restored(after, tmp_path / "home")
        settling.begin(base)
        assert settling.ALARM in base.alarms
        made = []

        async def sign():
            made.append(await after.author.make(beat(load=9)))

        async def settle(*, task_status):
            replica = SimpleNamespace(follower=after.follower)
            await settling.settle(base, replica, None, task_status=task_status)

        services = after.intake.run, after.follower.run, settle
        async with after.running(*services), trio.open_nursery() as nursery:
            nursery.start_soon(sign)
            await trio.sleep(60)
            assert not made, "nobody has told anything"
            after.peers = ["a", "b"]
            for peer in "ab":
                after.finals_of[peer], after.pending_of[peer] = [], []
                after.blocks_of[peer] = []
            del after.pending_of["b"]  # answers nothing yet
            await trio.sleep(60)
            assert not made, "not every peer has told"
            after.pending_of["b"] = blocks
            await until(lambda: made)
            nursery.cancel_scope.cancel()
        assert made[0].header.sequence == 4
        assert not base.home.restored.exists() and not base.alarms

    run(main)


def test_the_alarm_may_be_gone_and_a_new_home_signs_at_once(tmp_path):
    node = Node(tmp_path, me=1)

    async def main():
        base = restored(node, tmp_path / "home")
        settling.begin(base)
        base.alarms.clear()  # pushed out by later ones
        node.peers, node.finals_of["a"], node.pending_of["a"] = ["a"], [], []

        async def settle(*, task_status):
            replica = SimpleNamespace(follower=node.follower)
            await settling.settle(base, replica, None, task_status=task_status)

        async with node.running(node.intake.run, node.follower.run, settle):
            await until(base.settled.is_set)
        again = restored(node, tmp_path / "home")
        again.home.restored.unlink()
        again.is_amnesic = False
        settling.begin(again)
        assert again.settled.is_set() and not again.alarms

    run(main)


def test_peers_that_left_are_forgotten(tmp_path):
    node = Node(tmp_path, me=1)

    async def main():
        async with node.running(node.intake.run, node.follower.run):
            for number in range(20):
                peer = f"p{number}"
                node.peers = [peer]
                node.finals_of[peer], node.pending_of[peer] = [], []
                await until(lambda: peer in node.follower._level)
            assert len(node.follower._level) == 1

    run(main)


def test_a_damaged_log_stays_damaged_until_sequences_are_known_too(tmp_path):
    node = Node(tmp_path)
    for _ in range(4):
        node.intents.reserve_sequence(bytes(20))
    node.intents.close()
    log = tmp_path / "intents0" / "log"
    raw = bytearray(log.read_bytes())
    raw[-SLOT_BYTES - 20] ^= 1
    log.write_bytes(raw)
    intents = IntentLog(tmp_path / "intents0")

    async def main():
        chain: Any = SimpleNamespace(
            view=lambda: node.machine.view, clock=lambda: node.machine.clock
        )
        mesh: Any = SimpleNamespace(say=lambda message: None)
        pen: Any = SimpleNamespace(key_in=lambda voters: node.keys[0])
        await Memory(chain, mesh, pen, intents, node.lane, is_lost=True).settle()
        assert intents.damaged  # a kill here, and the next start asks again

    run(main)
