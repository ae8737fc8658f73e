"""A peer that misbehaves is throttled, banned and named; the others notice nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from blyan_proto.protocols import sync
from blyan_proto.protocols.result import ResultCode
from blyan_proto.rpc.errors import PEER_REFUSED, RpcError
from blyanctl.__main__ import main as blyanctl
from blyand.errors import Unavailable
from tests.functional.harness import Daemon, Network, network, wait_for
from tests.functional.hostile import HUGE, Hostile, hostile

pytestmark = pytest.mark.functional


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    with network(tmp_path_factory.mktemp("peers") / "d", 2) as made:
        yield made


@contextmanager
def served_meanwhile(peer: Hostile, node: Daemon) -> Iterator[list[object]]:
    """Let an honest peer ask for checkpoints again and again; give its answers."""
    answers: list[object] = []
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            try:
                asked = sync.GetCheckpoints(1, 8)
                answers.append(
                    peer.request(
                        node, sync.PROTOCOL_ID, asked, sync.REQUEST, sync.Checkpoints
                    )
                )
            except Exception as error:
                answers.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield answers
    finally:
        over.set()
        thread.join()


def shown(node: Daemon, peer: Hostile) -> dict:
    return node.call("peer.show", peer_id=peer.peer_id)


def misbehave(peer: Hostile, node: Daemon) -> bool:
    """Forge a hello, on a new connection if need be; True once it is banned."""
    try:
        peer.do(peer.host.connect, node.address)
        peer.forge_hello(node)
    except Unavailable:
        pass
    return shown(node, peer)["state"] == "banned"


def is_turned_away(peer: Hostile, node: Daemon) -> bool:
    try:
        peer.meet(node)
    except Unavailable:
        return True
    return False


def test_a_hostile_peer_is_banned_and_an_honest_one_is_served(
    net: Network, capsys: pytest.CaptureFixture[str]
):
    node = net[1]
    with (
        hostile(net, source="127.0.8.1") as honest,
        hostile(net, source="127.0.7.1") as bad,
    ):
        assert "/127.0.7.1/" in shown(node, bad)["address"]
        with served_meanwhile(honest, node) as answers:
            assert bad.ask(node, sync.PROTOCOL_ID, HUGE) is ResultCode.INVALID_REQUEST
            assert shown(node, bad)["state"] == "good"
            wait_for(lambda: misbehave(bad, node), "the forger is banned", 30.0)
            bad.wait_gone(node)
            assert is_turned_away(bad, node)
        assert len(answers) > 10
        wrong = [one for one in answers if not isinstance(one, sync.Checkpoints)]
        assert not wrong, wrong[:3]

        told = shown(node, bad)
        assert not told["connected"] and 800 < told["banned_for_s"] <= 900
        assert told["reasons"][0]["error"] == "BadSignature"
        assert "frame of 4294967295 bytes" in told["reasons"][-1]["sentence"]
        assert shown(node, honest)["score"] == 0 and not shown(node, honest)["reasons"]
        with pytest.raises(RpcError) as caught:
            node.call("peer.connect", address=bad.address)
        assert caught.value.code == PEER_REFUSED.code
        assert "peer unban" in caught.value.message
        listed = net[0].call("peer.list")["peers"]
        assert {one["state"] for one in listed} == {"good"}, "each judges for itself"

        node.kill()
        node.start()
        (ban,) = node.call("peer.bans")["bans"]
        assert ban["peer_id"] == bad.peer_id and ban["error"] == "BadSignature"
        assert 0 < ban["banned_for_s"] <= told["banned_for_s"]
        assert is_turned_away(bad, node)
        assert blyanctl(["--home", str(node.home), "peer", "bans"]) == 0
        assert bad.peer_id in capsys.readouterr().out

        assert node.call("peer.unban", peer_id=bad.peer_id)["was"] == "banned"
        bad.meet(node)
        assert shown(node, bad)["connected"] and shown(node, bad)["state"] == "good"


def test_an_operator_bans_and_a_restart_keeps_it(net: Network):
    node = net[1]
    with hostile(net) as peer:
        command = ["--home", str(node.home), "peer", "ban", peer.peer_id]
        assert blyanctl([*command, "--minutes", "5", "--reason", "too loud"]) == 0
        peer.wait_gone(node)
        assert is_turned_away(peer, node)
        node.kill()  # at once: what was answered is on the disk
        node.start()
        (ban,) = node.call("peer.bans")["bans"]
        assert (ban["reason"], ban["error"]) == ("too loud", "operator")
        assert 0 < ban["banned_for_s"] <= 300 and is_turned_away(peer, node)
        node.call("peer.unban", peer_id=peer.peer_id)
        peer.meet(node)
        node.call("peer.disconnect", peer_id=peer.peer_id)
        peer.wait_gone(node)
