"""What is killed comes back, and nobody notices but by the time it takes."""

from __future__ import annotations

import os

import pytest

from tests.functional.harness import Daemon, Network, wait_for

pytestmark = pytest.mark.functional


@pytest.fixture
def net(unspared: Network) -> Network:
    return unspared


def test_an_answer_survives_the_death_of_a_node_that_computes_it(net: Network):
    asker = net[3]
    asked = {"prompt": "import ", "max_tokens": 60}
    whole = asker.call("infer.generate", **asked)
    calls = {p["peer_id"]: p["calls"] for p in whole["peers"]}
    victim = max(net.nodes[1:3], key=lambda node: calls.get(node.peer_id, 0))
    with asker.client() as client:
        stream = client.stream("infer.generate", asked)
        for count, _ in enumerate(stream, 1):
            if count == 10:
                victim.kill()
        again = stream.result
    assert again["token_ids"] == whole["token_ids"]
    assert again["finish_reason"] == "length"
    victim.start()
    wait_for(lambda: victim.status()["peers"] == 3, "the victim meets its peers again")


def test_damaged_blobs_are_noticed_and_fetched_again(net: Network):
    victim = net[2]
    victim.kill()
    blobs = sorted((victim.home / "blobs").rglob("*.tblk"))
    for number, path in enumerate(blobs):
        path.chmod(0o600)
        if number % 3 == 0:
            os.truncate(path, path.stat().st_size // 2)
        elif number % 3 == 1:
            path.unlink()
    victim.start()
    net.wait_for_equal_roots(*net.nodes)
    answers = [
        node.call("infer.generate", prompt="def ", max_tokens=8)["token_ids"]
        for node in (victim, net[1])
    ]
    assert answers[0] == answers[1]


def test_training_goes_on_without_a_primary_and_it_catches_up(net: Network):
    """A primary dies inside a round, and a stranger joins late through one peer."""
    net.start_run(rounds=200, deadline_s=5.0)
    wait_for(lambda: closed(net[0]) >= 1, "a round")
    victim = max(net.nodes[1:], key=lambda n: len(n.call("train.status")["primary_of"]))
    victim.kill()
    before = closed(net[0])
    others = [node for node in net.nodes if node is not victim]
    wait_for(lambda: closed(net[0]) >= before + 3, "rounds without the victim")
    net.wait_for_equal_roots(*others)

    victim.start()
    fifth = net.join(net[2])
    missed = closed(net[0])
    wait_for(lambda: closed(victim) >= missed, "the victim catches up")
    wait_for(lambda: closed(fifth) >= missed, "the late node catches up")
    wait_for(lambda: fifth.status()["peers"] == 4, "the late node finds the others")
    wait_for(lambda: holds_experts(fifth), "the late node holds experts")
    wait_for(lambda: is_holder(net[0], fifth), "and the others know it")
    learnt = tokens(victim)
    wait_for(lambda: tokens(victim) > learnt, "the victim learns again")
    net.end_runs()
    net.wait_for_equal_roots(*net.nodes)
    answers = [
        node.call("infer.generate", prompt="def ", max_tokens=8)["token_ids"]
        for node in net.nodes
    ]
    assert all(answer == answers[0] for answer in answers)


def closed(node: Daemon) -> int:
    rounds: int = node.call("train.status")["finalised_round"]
    return rounds


def tokens(node: Daemon) -> int:
    learnt: int = node.call("train.status")["tokens"]
    return learnt


def holds_experts(node: Daemon) -> bool:
    experts = node.call("expert.list")["experts"]
    return any(expert["local"] for expert in experts)


def is_holder(node: Daemon, of: Daemon) -> bool:
    """True when `node` counts `of` among the holders of what `of` holds."""
    names = [one["name"] for one in of.call("expert.list")["experts"] if one["local"]]
    for name in names:
        holders = node.call("expert.show", name=name)["holders"]
        if of.peer_id not in {holder["peer_id"] for holder in holders}:
            return False
    return bool(names)
