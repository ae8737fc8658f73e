"""Without the sequencer nothing becomes final; everything else goes on (DEC-E8)."""

from __future__ import annotations

import pytest

from tests.functional.harness import Daemon, Network, wait_for

pytestmark = pytest.mark.functional
AHEAD = 2  # K: how many rounds training may run ahead of finality


@pytest.fixture
def net(unspared: Network) -> Network:
    return unspared


def test_without_the_sequencer_serving_goes_on_and_training_pauses(net: Network):
    sequencer, others = net[0], net.nodes[1:]
    net.end_runs()
    rounds = net.start_run(rounds=200, deadline_s=3.0)
    wait_for(lambda: finalised(others[0]) >= 2, "two rounds")
    sequencer.kill()
    asked = {"prompt": "def ", "max_tokens": 8}
    answers = [node.call("infer.generate", **asked)["token_ids"] for node in others]
    assert len(answers[0]) == 8 and all(one == answers[0] for one in answers)
    for node in others:
        wait_for(lambda: paused(node), f"{node.name} pauses")
        told = node.call("train.status")
        assert told["state"] == "paused"
        assert told["round"] <= told["finalised_round"] + AHEAD + 1 < rounds
    final = max(node.status()["finalised"] for node in others)
    reached = finalised(others[0])
    again = [node.call("infer.generate", **asked)["token_ids"] for node in others]
    assert again == answers
    assert all(node.status()["finalised"] <= final for node in others)

    sequencer.start()
    wait_for(lambda: finalised(others[0]) >= reached + 3, "training is resumed")
    for node in others:
        assert not paused(node)
    check_checkpoints(net)


def test_a_sequencer_killed_at_work_makes_no_second_checkpoint(net: Network):
    """Each time at another place between recording, signing, storing and telling."""
    sequencer, others = net[0], net.nodes[1:]
    net.start_run(rounds=200, deadline_s=3.0)
    for _ in range(2):
        height = others[0].status()["finalised"]
        wait_for(lambda: others[0].status()["finalised"] > height, "a checkpoint")
        sequencer.kill()
        sequencer.start()
        top = max(node.status()["finalised"] for node in net.nodes)
        for node in net.nodes:
            wait_for(lambda: node.status()["finalised"] > top, "new checkpoints")
    check_checkpoints(net)
    net.end_runs()
    net.wait_for_equal_roots(*net.nodes)


def check_checkpoints(net: Network) -> None:
    """No two checkpoints of one height, on any two nodes, at any height."""
    top = min(node.status()["finalised"] for node in net.nodes)
    chains = []
    for node in net.nodes:
        with node.client() as client:
            told = [client.call("chain.checkpoint", {"height": h}) for h in range(top)]
        chains.append([one["id"] for one in told])
        for before, after in zip(told, told[1:]):
            assert after["parent"] == before["id"]
    assert all(chain == chains[0] for chain in chains)


def paused(node: Daemon) -> bool:
    """True when node.status says that training waits for the sequencer."""
    reason: str = node.status()["training"]
    return reason.startswith("paused") and "sequencer" in reason


def finalised(node: Daemon) -> int:
    rounds: int = node.call("train.status")["finalised_round"]
    return rounds
