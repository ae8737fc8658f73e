"""What is killed comes back, and nobody notices but by the time it takes."""

from __future__ import annotations

import os
import random

import pytest

from tests.functional.harness import Network, wait_for
from tests.functional.killing import train_and_kill

pytestmark = pytest.mark.functional


@pytest.fixture
def net(unspared: Network) -> Network:
    return unspared


def test_ten_rounds_with_kills_leave_the_same_bytes_everywhere(net: Network):
    killed = train_and_kill(net, 10, every=2, rng=random.Random(1), deadline_s=2.0)
    assert len(killed) == 4
    for node in net.nodes:
        told = node.call("chain.verify")
        assert told["sound"], told["problems"][:10]


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

    def agree() -> bool:
        answers = [
            node.call("infer.generate", prompt="def ", max_tokens=8)["token_ids"]
            for node in net.nodes
        ]
        return all(answer == answers[0] for answer in answers)

    # A checkpoint may adopt the last round between two of the calls.
    wait_for(agree, "all nodes give one answer")
