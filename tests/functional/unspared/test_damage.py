"""A node whose database is damaged comes back by itself, with what its peers have."""

from __future__ import annotations

import os
import random
import resource
from pathlib import Path
from typing import Any

import plyvel
import pytest

from blyan_proto.rpc.errors import RpcError
from blyanctl import devnet
from blyanctl.client import NoAnswer, NoDaemon
from tests.functional.harness import Daemon, Network, wait_for
from tests.functional.processes import children_of

pytestmark = pytest.mark.functional


@pytest.fixture
def net(unspared: Network) -> Network:
    return unspared


def test_damage_that_a_running_node_meets_does_not_end_it(net: Network):
    victim, peer = net[3], net[0]
    victim.kill()
    wait_for(lambda: makes_tables(victim.home / "db"), "nobody holds the database")
    for table in (victim.home / "db").glob("*.ldb"):
        spoil(table, random.Random(8), at=600)  # headers: the start needs few of them
    started = devnet.start(net.directory, victim.node, len(net.nodes))
    try:
        victim.call("chain.verify", blobs=False)
    except (RpcError, NoDaemon, NoAnswer) as error:  # or it was met before
        assert "the daemon starts again" in str(error) or not isinstance(
            error, RpcError
        )
    victim.wait_for_log("this node starts again and repairs it")
    assert agrees(victim, peer)
    victim.note()
    assert victim.pid == started["pid"]


def test_a_damaged_database_is_mended_by_the_peers(net: Network):
    victim, peer = net[3], net[0]
    victim.kill()
    rng = random.Random(7)
    for table in (victim.home / "db").glob("*.ldb"):
        spoil(table, rng)
    for log in (victim.home / "db").glob("*.log"):
        os.truncate(log, log.stat().st_size // 2)
    (victim.home / "db" / "CURRENT").unlink()
    victim.start()
    assert any("damaged and repaired" in one for one in victim.status()["warnings"])
    assert agrees(victim, peer)


def test_a_full_disk_is_told_and_passes(net: Network, tmp_path: Path):
    """No file of the process may grow: what a full disk looks like to it."""
    victim, peer = net[3], net[0]
    (tmp_path / "text.txt").write_text("some words that nobody has seen\n" * 200)
    add = {"directory": str(tmp_path), "name": "written when there was room"}
    usual = resource.prlimit(victim.pid, resource.RLIMIT_FSIZE)
    try:
        resource.prlimit(victim.pid, resource.RLIMIT_FSIZE, (1024, usual[1]))
        with pytest.raises(RpcError, match="full|too large"):
            victim.call("data.add", **add)
        wait_for(lambda: warns(victim, "disk is full"), "the operator is told")
        assert victim.call("infer.generate", prompt="def ", max_tokens=4)["token_ids"]
    finally:
        for pid in (victim.pid, *children_of(victim.pid)):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, usual)
    wait_for(lambda: not warns(victim, "disk is full"), "it takes writes again")
    made = wait_for(lambda: victim.call("data.add", **add), "and ours")["dataset_id"]
    wait_for(lambda: peer.call("chain.block", id=made), "the peer has its block")
    assert agrees(victim, peer)


def warns(node: Daemon, text: str) -> bool:
    return any(text in warning for warning in node.status()["warnings"])


def makes_tables(path: Path) -> bool:
    """Open a database, which makes a table of its log; False while it is in use."""
    try:
        plyvel.DB(str(path)).close()
    except plyvel.IOError:
        return False
    return True


def spoil(table: Path, rng: random.Random, at: int | None = None) -> None:
    """Write over some bytes of a file, as a dying disk does."""
    with table.open("r+b") as file:
        file.seek(table.stat().st_size // 3 if at is None else at)
        file.write(rng.randbytes(200))


def agrees(victim: Daemon, peer: Daemon) -> bool:
    """True once both have the same state and blocks, all of them sound."""

    def tips(node: Daemon) -> list[Any]:
        told = node.call("chain.tips")
        counts = [(one["chain"], one["blocks"]) for one in told["chains"]]
        return [told["finalised"], told["state_root"], counts]

    def sound() -> bool:
        told = victim.call("chain.verify", blobs=False)
        return bool(told["sound"]) and victim.status()["hosted"] != []

    wait_for(lambda: tips(victim) == tips(peer), "equal state and blocks")
    wait_for(sound, "all that was lost is back")
    return True
