"""Whoever dies and whoever races: one head of each (group, lease, round) counts."""

from __future__ import annotations

import random

from tests.sim.elections import Network


def test_one_head_counts_of_each_round_while_nodes_come_and_go():
    net = Network(30, random.Random(1), kill_every_s=3.0)
    net.run(40.0)
    assert net.doubles == 0
    by_rank = list(net.accepted.values())
    assert len(by_rank) > 60 and by_rank.count(1) > 3
    assert max(net.takeovers_s) < 15.0, "about what state takes to see a death"
