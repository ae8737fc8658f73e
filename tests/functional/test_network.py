"""Four daemons, one model: placement, answers, training, a stranger's bytes."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from blyan_proto.block.block import Block
from blyan_proto.block.data import Dataset
from blyan_proto.block.economy import Heartbeat
from blyan_proto.block.work import has_work
from blyan_proto.constants import FORMAT_VERSION
from blyan_proto.protocols import blobs, blocks, delta, expert, hello, sync
from blyan_proto.protocols.delta import Verdict
from blyan_proto.protocols.result import ResultCode
from blyan_proto.rpc.errors import BLOCK_UNKNOWN, PEER_REFUSED, RpcError
from blyan_proto.types import bitmap
from blyand import genesis as genesis_file
from blyand.protocols.hello import OtherNetwork
from tests.functional.deltas import bundles
from tests.functional.harness import Daemon, Network, network, wait_for
from tests.functional.hostile import HUGE, Hostile, hostile
from tests.long import long

pytestmark = pytest.mark.functional


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    with network(tmp_path_factory.mktemp("net") / "d", 4) as made:
        made.make_model()
        yield made


def test_status_has_what_operators_ask_for(net: Network):
    wait_for(lambda: net[1].status()["peers"] == 3, "everybody meets everybody")
    status = net[1].status()
    wanted = (
        "peer_id pid network version listen peers roles hosted height finalised "
        "uptime_s"
    ).split()
    assert set(wanted) <= set(status)
    assert status["finalised"] > 0
    assert status["listen"][0].endswith("/p2p/" + status["peer_id"])


def test_no_node_holds_all_experts_and_each_expert_has_two_holders(net: Network):
    for node in net.nodes:
        experts = node.call("expert.list")["experts"]
        assert any(not expert["local"] for expert in experts)
        assert all(expert["holders"] == 2 for expert in experts)


def test_an_answer_streams_and_is_the_same_on_every_node(net: Network):
    answers, remote = [], 0
    for node in net.nodes:
        with node.client() as client:
            stream = client.stream(
                "infer.generate", {"prompt": "def ", "max_tokens": 12}
            )
            streamed = [item["token_id"] for item in stream]
        assert streamed == stream.result["token_ids"]
        assert stream.result["finish_reason"] == "length"
        answers.append(streamed)
        calls = stream.result["peers"]
        remote += sum(p["calls"] for p in calls if p["peer_id"] != node.peer_id)
    assert remote > 0
    assert all(answer == answers[0] for answer in answers)


def test_training_lowers_the_loss_and_leaves_equal_roots(net: Network):
    net[0].call("train.start", preset="tiny", rounds=3, gate=1)
    with net[0].client() as client:
        stream = client.stream("train.watch", {})
        rounds = list(stream)
    assert [item["round"] for item in rounds] == [0, 1, 2, 3]
    assert rounds[0]["baselines"]["bigram"] < rounds[0]["baselines"]["unigram"]
    ended = stream.result
    assert ended["outcome"] == "finished"
    assert ended["held_out_loss"] < ended["first_held_out_loss"] - 0.5
    net.wait_for_equal_roots(*net.nodes)
    wait_for(lambda: adopted(net[2]) == 3, "the gate has adopted the last round")
    judged = net[1].call("train.gate")
    assert judged["state"] == "passed" and judged["round"] == 3, judged
    assert judged["scores"][0]["bound"] < -0.1, judged
    found = net[2].call("train.audit", learner=net[1].peer_id, round=2, repeat=5)
    assert found["finding"] == "sound" and found["groups"] > 3, found
    assert found["exact"] and found["repeated"] == 5, found


def adopted(node: Daemon) -> int:
    rounds: int = node.call("model.list")["models"][0]["adopted_round"]
    return rounds


def test_rounds_close_though_all_learners_of_an_expert_have_stopped(net: Network):
    held = net[0].call("expert.show", name="layer0.expert0")["holders"]
    holders = [n for n in net.nodes if n.peer_id in {one["peer_id"] for one in held}]
    starter = next(node for node in net.nodes if node not in holders)
    assert len(holders) == 2
    for node in holders:
        node.call("train.stop")
    starter.call("train.start", preset="tiny", rounds=2, deadline_s=2.0, inner="muon")
    assert starter.call("train.status")["inner"] == "muon"
    wait_for(lambda: closed(starter) == 2, "both rounds")
    wait_for(lambda: adopted(starter) == 2, "the second run's heads are adopted")
    for node in holders:
        told = node.call("train.status")
        assert told["state"] == "paused" and "stopped" in told["reason"]
        assert told["tokens"] == 0
    for node in holders:
        node.call("train.stop")  # once more changes nothing
    net.wait_for_equal_roots(*net.nodes)


def test_blocks_and_checkpoints_are_the_same_everywhere(net: Network):
    height = min(node.status()["finalised"] for node in net.nodes)
    for step in range(1, height + 1, max(1, height // 10)):
        ids = {n.call("chain.checkpoint", height=step)["id"] for n in net.nodes}
        assert len(ids) == 1
    lines = net[3].call("chain.log", limit=50)["blocks"]
    kinds = {line["kind"] for line in lines}
    assert {"heartbeat", "tile_update"} <= kinds
    block = net[2].call("chain.block", id=lines[-1]["id"], payload=True)
    assert block["id"] == lines[-1]["id"] and block["payload"]


def test_errors_say_what_to_do(net: Network):
    for method, params, word in (
        ("infer.generate", {"prompt": "x" * 600}, "context"),
        ("expert.show", {"name": "layer0.expert9"}, "layer0"),
        ("chain.block", {"id": "00" * 32}, "block"),
        ("model.create", {"preset": "huge"}, "tiny"),
        ("data.add", {"directory": "/nowhere"}, "/nowhere"),
        ("peer.connect", {"address": "nonsense"}, "/p2p/"),
    ):
        with pytest.raises(RpcError) as caught:
            net[0].call(method, **params)
        assert word in caught.value.message, (method, caught.value.message)


def test_strangers_bytes_do_no_harm(net: Network):
    host, port = "127.0.0.1", int(net[1].status()["listen"][0].split("/")[4])
    half_open = socket.create_connection((host, port))
    for junk in (b"\x00" * 64, b"GET / HTTP/1.1\r\n\r\n", bytes(range(256)) * 64):
        with socket.create_connection((host, port)) as sock:
            sock.sendall(junk)
    half_open.sendall(b"\x13/multistream/1.0.0\n")
    assert net[1].status()["peers"] == 3
    half_open.close()


def test_a_node_of_another_network_is_turned_away(net: Network):
    genesis = genesis_file.load(net[0].home / "genesis.json")
    other = replace(genesis, salt=bytes(32))
    with pytest.raises(OtherNetwork, match=f"of network {genesis.id.hex()[:16]}"):
        with hostile(net, other):
            pass
    net[0].wait_for_log("is of another network")
    with hostile(net, other, dials=False) as peer:
        for node in net.nodes:
            with pytest.raises(RpcError) as caught:
                node.call("peer.connect", address=peer.address)
            assert caught.value.code == PEER_REFUSED.code
            node.wait_for_log(
                f"refused: {peer.peer_id} is of network {other.id.hex()}"[:90]
            )
            known = {one["peer_id"] for one in node.call("peer.list")["peers"]}
            assert peer.peer_id not in known


@pytest.fixture
def stranger(net: Network) -> Iterator[Hostile]:
    with hostile(net) as peer:
        yield peer


PROTOCOLS = (hello, blocks, sync, blobs, delta, expert)


@pytest.mark.parametrize("protocol", [p.PROTOCOL_ID for p in PROTOCOLS])
def test_a_broken_frame_is_refused(net: Network, stranger: Hostile, protocol: str):
    junk = b"\0\0\0\x04\xde\xad\xbe\xef"
    for frame in (HUGE, junk):
        assert stranger.ask(net[1], protocol, frame) is ResultCode.INVALID_REQUEST
    net[1].wait_for_log(f"{stranger.peer_id} misbehaved: a frame of 4294967295 bytes")
    # a frame that never comes costs the node nothing; hanging up is no offence
    assert stranger.ask(net[1], protocol, b"\0\0") is not ResultCode.OK
    is_well(net)


def test_false_blocks_are_refused_and_a_true_one_is_carried(
    net: Network, stranger: Hostile
):
    beat = Heartbeat(FORMAT_VERSION, None, b"", 0)
    true = stranger.block(beat)
    orphan = stranger.block(beat, parents=(bytes(32),), height=1)
    forged = replace(stranger.block(beat), signature=true.signature)
    bits = stranger.genesis.parameters.work_bits
    tried = (stranger.block(beat, nonce=n) for n in range(100))
    refused = {
        next(b for b in tried if not has_work(b.header, bits)): "the nonce does not",
        stranger.block(beat, height=true.header.height + 7): "the height is not one",
        forged: "wrong block signature",
        Block(true.header, true.signature, true.payload + b"x"): "payload's length",
        stranger.block(beat, network=bytes(32)): "a block of another network",
    }
    stranger.gossip(orphan)
    for block, sentence in refused.items():
        stranger.gossip(block)
        net[1].wait_for_log(sentence)
        stranger.come_back()  # else it would not be listened to for long
    stranger.gossip(b"\xff" * 100)
    net[1].wait_for_log(f"refused a block of {stranger.peer_id}: expected a list")
    # what lied in its name must not keep the true one out
    stranger.gossip(true)
    for node in net.nodes:
        found = wait_for(lambda: ordered(node, true), "the true block is ordered")
        assert found["error"] == "a heartbeat of a node that is not registered"
        for block in (orphan, forged):
            with pytest.raises(RpcError) as caught:
                node.call("chain.block", id=block.id.hex())
            assert caught.value.code == BLOCK_UNKNOWN.code
    is_well(net)


def test_two_blocks_under_one_sequence_are_kept_as_proof(
    net: Network, stranger: Hostile
):
    first = stranger.block(Heartbeat(FORMAT_VERSION, None, b"", 1))
    sequence = first.header.sequence
    twin = stranger.block(Heartbeat(FORMAT_VERSION, None, b"", 2), sequence=sequence)
    account = first.header.account.hex()
    for block in (first, twin):
        stranger.gossip(block)
    for node in net.nodes:
        (proof,) = wait_for(
            lambda: node.call("chain.evidence", account=account)["proofs"],
            "the proof is here",
        )
        ids = {proof["first"]["id"], proof["second"]["id"]}
        assert ids == {first.id.hex(), twin.id.hex()}
        assert (proof["chain"], proof["sequence"]) == ("C", sequence)
    is_well(net)


def test_a_member_that_lies_or_stays_silent_holds_nobody_up(
    net: Network, stranger: Hostile
):
    model = bytes.fromhex(net[0].call("model.list")["models"][0]["model_id"])
    everything = bitmap(set(range(13)), 13)
    for silent in (blocks, sync, blobs, expert):
        stranger.never_answer(silent.PROTOCOL_ID)
    stranger.answer_nonsense(delta.PROTOCOL_ID)  # to every other push: silence
    for number in range(24):  # archives that the validators will wait for
        named = f"nowhere {number}", bytes([number]) * 32
        dataset = Dataset(FORMAT_VERSION, *named, 10, 1, 0, "", "", 0, None)
        stranger.gossip(stranger.block(dataset))
    stranger.take_part(model, everything)
    started = net[0].call("train.start", preset="tiny", rounds=3, deadline_s=2.0)

    left = bundles(stranger, bytes.fromhex(started["run"]), model)

    def tried() -> bool:
        """Send what is left to whoever is a rank now; true when all was judged."""
        for node in net.nodes:
            for name, make in list(left.items()):
                stranger.come_back()  # it lies to whoever asks meanwhile
                answer = make(node)
                if answer in (Verdict.NOT_PRIMARY, Verdict.CLOSED):
                    continue
                if name != "stale" and answer is Verdict.STALE:
                    continue  # the round moved on between two calls
                assert answer == EXPECTED[name], (name, answer)
                del left[name]
        return not left

    wait_for(tried, "every bundle was judged by a rank")
    wait_for(lambda: closed(net[0]) == 3, "all rounds in spite of it")
    stranger.come_back()
    stranger.take_part(model, everything)
    is_well(net)
    assert {delta.PROTOCOL_ID, expert.PROTOCOL_ID} <= set(stranger.asked)
    net.wait_for_equal_roots(*net.nodes)


EXPECTED = {
    "shape": Verdict.SHAPE,
    "not finite": Verdict.NOT_FINITE,
    "stale": Verdict.STALE,
    "in another's name": Verdict.REFUSED,
    "signature": ResultCode.INVALID_REQUEST,
    "good": Verdict.TAKEN,
}


@long
def test_answers_stay_whole_while_five_versions_are_adopted(net: Network):
    started = net[0].call(
        "train.start", preset="tiny", rounds=5, adopt_every=1, deadline_s=2.0
    )
    answers: dict[str, list[list[int]]] = (
        {}
    )  # by the checkpoint whose versions answered
    likely: set[float] = set()  # other weights, other probabilities
    repinned = 0

    def ask(node: Daemon) -> None:
        nonlocal repinned
        asked = {"prompt": "while ", "max_tokens": 60}
        told = node.call("infer.generate", **asked)
        assert told["finish_reason"] == "length" and len(told["token_ids"]) == 60
        likely.add(round(sum(told["logprobs"]), 2))
        if told["repinned"]:
            repinned += (
                1  # it began again at a newer version: its first tokens are older
            )
        else:
            answers.setdefault(told["checkpoint"], []).append(told["token_ids"])

    def all_adopted() -> bool:
        with ThreadPoolExecutor() as pool:
            list(pool.map(ask, (net[0], net[3])))
        return adopted(net[0]) == 5

    assert started["rounds"] == 5
    wait_for(all_adopted, "five versions are adopted")
    for made in answers.values():
        assert all(one == made[0] for one in made)
    assert any(len(made) > 1 for made in answers.values())
    assert len(likely) > 1, repinned


def is_well(net: Network) -> None:
    """All nodes know each other and give the same answer."""

    def answer(node: Daemon) -> list[int]:
        made: list[int] = node.call("infer.generate", prompt="for ", max_tokens=4)[
            "token_ids"
        ]
        return made

    with ThreadPoolExecutor() as pool:
        answers = list(pool.map(answer, net.nodes))
    assert len(answers[0]) == 4 and all(one == answers[0] for one in answers)
    assert all(node.status()["peers"] >= len(net.nodes) - 1 for node in net.nodes)


def ordered(node: Daemon, block: Block) -> dict | None:
    found = node.call("chain.block", id=block.id.hex())
    return found if found["checkpoint"] is not None else None


def closed(node: Daemon) -> int:
    rounds: int = node.call("train.status")["finalised_round"]
    return rounds
