"""A newcomer joins a network by a checkpoint: it serves, follows, and fills in behind."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from blyan_proto.rpc.errors import RpcError
from tests.functional.harness import SHARED, Daemon, Network, network, wait_for

pytestmark = pytest.mark.functional
BLYAND = [sys.executable, "-m", "blyand"]


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    with network(tmp_path_factory.mktemp("join") / "d", 2) as made:
        made[0].call("model.create", preset="tiny")
        wait_for(lambda: all(SHARED < node.hosted() for node in made.nodes), "placed")
        yield made


def status(node: Daemon) -> dict:
    return node.call("sync.status")


def test_a_newcomer_serves_before_its_history_is_there(net: Network):
    asked = {"prompt": "def ", "max_tokens": 4}
    expected = net[0].call("infer.generate", **asked)["token_ids"]
    pin = net[0].call("sync.checkpoint")
    newcomer = net.join(net[0], by_state=True)
    wait_for(lambda: status(newcomer)["phase"] == "following", "it has joined")
    told = status(newcomer)
    assert told["joined_at"] >= pin["height"] and told["chunks"] == 256
    assert told["sync_time_s"] > 0 and not told["trouble"]
    wait_for(lambda: SHARED < newcomer.hosted(), "it holds what it has to")
    answer = wait_for(lambda: newcomer.call("infer.generate", **asked), "it answers")
    assert answer["token_ids"] == expected

    # What it received is what the transport counted.
    down = {
        one["protocol"]: one["down_bytes"]
        for one in newcomer.call("node.traffic")["protocols"]
    }
    names = ("/blyan/sync/1", "/blyan/blocks/1", "/blyan/blobs/1")
    counted = sum(down.get(name, 0) for name in names)
    assert told["downloaded_bytes"] <= counted

    # It goes on with the others, its history comes, and all of it is sound.
    with newcomer.client() as client:
        stream = client.stream("sync.watch", {"history": True})
        for item in stream:
            assert item["joined_at"] == told["joined_at"]
        assert stream.result["history_from"] == stream.result["blocks_from"] == 1
    height = net[0].status()["finalised"]
    wait_for(lambda: newcomer.status()["finalised"] >= height, "it follows")
    same = [
        node.call("chain.checkpoint", height=height)["state_root"]
        for node in (net[0], newcomer)
    ]
    assert same[0] == same[1]
    first = [node.call("chain.checkpoint", height=1) for node in (net[0], newcomer)]
    assert first[0] == first[1]
    with newcomer.client() as client:
        stream = client.stream("chain.verify", {})
        list(stream)
        assert stream.result["sound"], stream.result["problems"]
    assert newcomer.call("chain.stats")["blocks"] > 0

    # A kill changes nothing of it.
    newcomer.kill()
    newcomer.start()
    again = status(newcomer)
    assert again["joined_at"] == told["joined_at"] and again["blocks_from"] == 1
    wait_for(lambda: newcomer.status()["finalised"] > height, "it follows again")


def run_alone(net: Network, genesis: Path) -> subprocess.CompletedProcess[str]:
    """Run a fresh node until it ends by itself."""
    home = net.directory / "alone"
    init = [*BLYAND, "init", "--home", str(home), "--genesis", str(genesis)]
    subprocess.run(init, check=True, capture_output=True)
    command = [*BLYAND, "run", "--home", str(home), "--listen", "/ip4/127.0.0.1/tcp/0"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_without_a_pin_an_old_genesis_ends_in_a_sentence(net: Network):
    plan = net.directory / "plan.toml"
    plan.write_text("time_ms = 1000\n")
    genesis = net.directory / "old.json"
    founder = net.directory / "node0" / "founder.json"
    account = json.loads(founder.read_text())["account"]
    create = [*BLYAND, "genesis", "create", str(genesis), "--spec", str(plan)]
    create += ["--founder", str(founder), "--balance", f"{account}=1"]
    subprocess.run(create, check=True, capture_output=True)
    ended = run_alone(net, genesis)
    assert ended.returncode == 1
    assert "no newcomer may trust it alone" in ended.stderr
    assert "blyand run --checkpoint HEIGHT:HASH" in ended.stderr
    assert ended.stderr.strip().count("\n") == ended.stderr.strip().count("INFO")


def test_providers_and_the_pin_are_shown(net: Network):
    shown = net[0].call("sync.checkpoint")
    height, _, id = shown["checkpoint"].partition(":")
    made = net[0].call("chain.checkpoint", height=int(height))
    assert made["id"] == id == shown["id"]
    assert 3 * shown["weight"] > 2 * shown["total_weight"]
    peers = {one["peer"] for one in net[0].call("sync.providers")["providers"]}
    assert net[1].peer_id in peers
    with pytest.raises(RpcError):
        net[0].call("chain.checkpoint", height=10**6)
