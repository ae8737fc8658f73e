"""Rounds of training during which nodes are killed, one at a time, and come back."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from tests.functional.harness import Daemon, Network, wait_for

PATIENCE_S = 240.0  # for the rounds between two kills


def train_and_kill(
    net: Network,
    rounds: int,
    every: int,
    rng: random.Random,
    say: Callable[[str], None] = str,
    patience_s: float = PATIENCE_S,
    **settings: object,
) -> list[str]:
    """Have a run of `rounds`; kill some node every so many; return who was killed.

    The node that leads the most groups goes first, others as they are drawn; one is away
    at a time. Returns when the run is finished and all nodes hold the same bytes.
    """
    asked = {"preset": "tiny", "dataset": "corpus", "rounds": rounds, **settings}
    starter = net[0]
    started = starter.call("train.start", **asked)
    for node in net.nodes[1:]:
        wait_for(lambda: node.call("train.status")["run"] == started["run"], "it joins")
        node.call("train.start")
    killed: list[str] = []
    for at in range(every, rounds, every):
        wait_for(lambda: closed(net) >= at - 1, f"{at - 1} rounds", patience_s)
        victim = leader(net) if len(killed) % 2 == 0 else rng.choice(net.nodes)
        time.sleep(rng.uniform(0.0, 0.5))  # anywhere in a round
        victim.kill()
        killed.append(victim.name)
        time.sleep(rng.uniform(0.0, 1.0))
        victim.start()
        resumed(victim)
        say(f"{closed(net)} rounds, killed {victim.name}")
    wait_for(
        lambda: all(closed_on(node) == rounds for node in net.nodes),
        f"{rounds} rounds on every node",
        patience_s,
        lambda: str([node.call("train.status")["reason"] for node in net.nodes]),
    )
    net.wait_for_equal_roots(*net.nodes)
    return killed


def leader(net: Network) -> Daemon:
    """Return the node that is the primary of the most groups now."""
    leads = {
        node.name: len(node.call("train.status")["primary_of"]) for node in net.nodes
    }
    return max(net.nodes, key=lambda node: leads[node.name])


def resumed(node: Daemon) -> None:
    """Let a node that was started again learn, if it does not by itself."""
    if node.call("train.status")["state"] == "off":
        node.call("train.start")


def closed(net: Network) -> int:
    """Return how many rounds are final, as the first node to answer knows it."""
    return max(closed_on(node) for node in net.nodes)


def closed_on(node: Daemon) -> int:
    rounds: int = node.call("train.status")["finalised_round"]
    return rounds
