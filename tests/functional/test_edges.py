"""Two regions of real daemons: deltas go by edges, and all end with the same bytes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.functional.harness import Daemon, network, wait_for
from tests.long import long

pytestmark = pytest.mark.functional
EDGE = "/blyan/edge/1"


def stand_in(node: Daemon, region: str) -> None:
    """Restart a node under the name of a region."""
    path = node.home / "config.toml"
    text, found = re.subn(
        r"(?m)^(\[net\])$", rf'\1\nregion = "{region}"', path.read_text()
    )
    assert found == 1
    path.write_text(text)
    node.kill()
    node.start()


def edge_bytes(node: Daemon) -> int:
    """Return what a node sent and got over the edges' protocol."""
    lines = node.call("node.traffic")["protocols"]
    return sum(
        line["up_bytes"] + line["down_bytes"]
        for line in lines
        if line["protocol"] == EDGE
    )


@long
def test_far_deltas_go_by_edges(tmp_path: Path):
    with network(tmp_path / "d", 4) as net:
        for index, node in enumerate(net.nodes):
            stand_in(node, "ab"[index % 2])
        net.make_model()
        rounds = net.start_run(rounds=4)

        def edges() -> set[str]:
            told = [node.call("train.status") for node in net.nodes]
            assert all(one["region"] in ("a", "b", None) for one in told)
            return {group for one in told for group in one["edge_of"]}

        wait_for(edges, "some node is an edge")
        wait_for(
            lambda: all(
                node.call("train.status")["finalised_round"] == rounds
                for node in net.nodes
            ),
            "all rounds are final",
            400.0,
        )
        net.wait_for_equal_roots(*net.nodes)
        assert all(map(edge_bytes, net.nodes))
        for node in net.nodes:
            told = node.call("train.status")
            assert told["within_bytes"] > 0 and told["between_bytes"] > 0
            counted = node.call("node.metrics")["text"]
            assert 'region="other"' in counted and 'region="same"' in counted
