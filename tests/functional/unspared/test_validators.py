"""Real daemons agree while some die; without a quorum they wait and say so (DEC-E8)."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pytest

from tests.functional.harness import Daemon, Network, network, wait_for
from tests.functional.processes import is_running
from tests.long import long

pytestmark = pytest.mark.functional
AHEAD = 2  # K: how many rounds training may run ahead of finality


@pytest.fixture
def net(unspared: Network) -> Iterator[Network]:
    """The shared network; what a failed test leaves dead is alive for the next."""
    yield unspared
    for node in unspared.nodes:
        if not is_running(node.pid):
            node.start()


def test_without_a_quorum_serving_goes_on_and_training_pauses(net: Network):
    net.end_runs()
    others, serves = spared(net)
    victims = [node for node in net.nodes if node not in others]
    rounds = net.start_run(rounds=200, deadline_s=2.0)
    wait_for(lambda: finalised(others[0]) >= 2, "two rounds")
    for node in victims:
        node.kill()
    answers = generated(others) if serves else []
    assert all(len(one) == 8 and one == answers[0] for one in answers)
    for node in others:
        wait_for(lambda: "no quorum" in str(warnings(node)), f"{node.name} says why")
        stands = node.call("consensus.status")
        assert stands["heard_weight"] <= 2 and stands["quorum_weight"] == 3
        where = f"of 4 weight at height {stands['height']} round {stands['round']}"
        assert stands["waits"].startswith("no quorum: votes of ") and where in str(
            stands["waits"]
        )
        wait_for(lambda: waits(node), f"{node.name} pauses", seen=node.status)
        told = node.call("train.status")
        assert told["round"] <= told["finalised_round"] + AHEAD + 1 < rounds
    reached = finalised(others[0])
    heights = [node.status()["finalised"] for node in others]
    assert (generated(others) if serves else []) == answers
    assert [node.status()["finalised"] for node in others] == heights

    for node in victims:
        node.start()
    wait_for(
        lambda: finalised(others[0]) >= reached + 3,
        "training is resumed",
        seen=lambda: told_by(net),
    )
    for node in others:
        wait_for(lambda: "no quorum" not in str(warnings(node)), "it is forgotten")
    check_checkpoints(net)


def test_one_validator_is_killed_at_any_time_and_the_others_go_on(net: Network):
    """At some place between promising, signing, storing and telling."""
    net.start_run(rounds=200, deadline_s=3.0)
    for victim in net.nodes[3:]:
        others = [node for node in net.nodes if node is not victim]
        time.sleep(random.uniform(0, 0.5))
        victim.kill()
        height = max(node.status()["finalised"] for node in others)
        for node in others:
            wait_for(lambda: node.status()["finalised"] > height + 4, "they go on")
        victim.start()
        top = max(node.status()["finalised"] for node in others)
        wait_for(lambda: victim.status()["finalised"] > top, "it is back")
        wait_for(lambda: victim.call("consensus.status")["votes"], "and votes")
    check_checkpoints(net)
    net.end_runs()
    net.wait_for_equal_roots(*net.nodes)


def test_what_consensus_status_tells(net: Network):
    told = net[0].call("consensus.status")
    assert [one["weight"] for one in told["validators"]] == [1, 1, 1, 1]
    assert sum(one["me"] for one in told["validators"]) == 1
    assert {one["peer_id"] for one in told["validators"]} == {
        node.peer_id for node in net.nodes
    }
    wait_for(
        lambda: all(
            one["connected"]
            for node in net.nodes
            for one in node.call("consensus.status")["validators"]
        ),
        "streams between all validators",
    )
    last = told["last"]
    assert last["height"] == told["height"] - 1 and last["weight"] >= 3


@long
def test_seven_validators_two_killed_and_a_network_split(tmp_path: Path):
    source = random.Random(7)
    with network(tmp_path / "d", 7) as net:
        net[0].call("model.create", preset="tiny")  # from now on heartbeats are ordered
        for _ in range(4):
            victims = source.sample(net.nodes, 2)
            for node in victims:
                time.sleep(source.uniform(0, 0.5))
                node.kill()
            others = [node for node in net.nodes if node not in victims]
            height = max(node.status()["finalised"] for node in others)
            wait_for(lambda: others[0].status()["finalised"] > height + 3, "go on")
            for node in victims:
                node.start()
        wait_for(lambda: len({top(node) for node in net.nodes}) == 1, "all are level")
        few = net.nodes[:3]
        rest = net.nodes[3:]
        for one in few:
            for other in rest:
                one.call("peer.ban", peer_id=other.peer_id)
                other.call("peer.ban", peer_id=one.peer_id)
        time.sleep(1.0)
        heights = [node.status()["finalised"] for node in net.nodes]
        for node in net.nodes:
            wait_for(lambda: "no quorum" in str(warnings(node)), "it says why")
        assert [node.status()["finalised"] for node in net.nodes] == heights
        for one in few:
            for other in rest:
                one.call("peer.unban", peer_id=other.peer_id)
                other.call("peer.unban", peer_id=one.peer_id)
        for one in few:
            one.call("peer.connect", address=rest[0].address)
        for node in net.nodes:
            wait_for(lambda: node.status()["finalised"] > max(heights) + 3, "it heals")
        check_checkpoints(net)
        wait_for(lambda: len({top(node) for node in net.nodes}) == 1, "one state")


def spared(net: Network) -> tuple[list[Daemon], bool]:
    """Return two nodes that stay, and whether they hold all experts between them."""
    held = {node.name: node.hosted() for node in net.nodes}
    everything = set.union(*held.values())
    for one, other in combinations(net.nodes, 2):
        if held[one.name] | held[other.name] == everything:
            return [one, other], True
    return net.nodes[:2], False


def generated(nodes: list[Daemon]) -> list[list[int]]:
    asked = {"prompt": "def ", "max_tokens": 8}
    return [node.call("infer.generate", **asked)["token_ids"] for node in nodes]


def top(node: Daemon) -> tuple[str, str]:
    tips = node.call("chain.tips")
    return tips["checkpoint"], tips["state_root"]


def check_checkpoints(net: Network) -> None:
    """No two checkpoints of one height, on any two nodes, at any height."""
    top = min(node.status()["finalised"] for node in net.nodes)
    chains = []
    for node in net.nodes:
        with node.client() as client:
            told = [client.call("chain.checkpoint", {"height": h}) for h in range(top)]
        chains.append([(one["id"], one["state_root"]) for one in told])
        for before, after in zip(told, told[1:]):
            assert after["parent"] == before["id"]
    assert all(chain == chains[0] for chain in chains)


def warnings(node: Daemon) -> list[str]:
    found: list[str] = node.status()["warnings"]
    return found


def waits(node: Daemon) -> bool:
    """True when node.status says that training waits, for whatever or whomever."""
    reason: str = node.status()["training"]
    return not reason.startswith(("training", "handing in"))


def told_by(net: Network) -> str:
    """Return what every node says of its training and its groups."""
    lines = [""]
    for node in net.nodes:
        told, status = node.call("train.status"), node.status()
        lines.append(f"{node.name}: {told} {status['training']} {status['hosted']}")
    return "\n".join(lines)


def finalised(node: Daemon) -> int:
    rounds: int = node.call("train.status")["finalised_round"]
    return rounds
