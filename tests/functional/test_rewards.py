"""Epochs of a real daemon: its validator is paid, it says why, and a kill changes nothing."""

from __future__ import annotations

import pytest

from blyan_proto.rpc.errors import RpcError
from tests.functional.harness import network, wait_for

pytestmark = pytest.mark.functional

GENESIS = (
    "--setting=epoch_span_ms=1000",
    "--setting=payout_minimum_micro=1",
    "--setting=vesting_span_ms=1000",
    "--parameter=idle_interval_ms=300",
)


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    with network(tmp_path_factory.mktemp("rewards") / "d", 1, GENESIS) as made:
        yield made


def newest(node):
    try:
        return node.call("reward.epoch")["number"]
    except RpcError:
        return -1


def test_a_validator_is_paid_and_the_payment_traced(net):
    node = net[0]
    wait_for(lambda: newest(node) >= 2, "three epochs")
    told = node.call("reward.epoch", number=1)
    assert told["is_over"] and told["paid_micro"] > 0
    assert told["paid_micro"] <= told["mintable_micro"]
    status = node.status()
    (recipient,) = told["recipients"]
    assert recipient["account"] == status["account"]
    why = node.call("reward.explain", who=status["peer_id"], epoch=1, limit=1000)
    assert why["paid_micro"] == recipient["paid_micro"]
    (part,) = why["parts"]
    assert f"of {told['checkpoints']} checkpoints" in part["inputs"]
    assert len(why["proofs"]) == told["checkpoints"]
    for proof in why["proofs"]:
        checkpoint = node.call("chain.checkpoint", height=proof["height"] - 1)
        assert checkpoint["id"] == proof["id"]


def test_totals_agree_before_and_after_a_kill(net):
    node = net[0]
    account = node.status()["account"]
    sums = {
        number: node.call("reward.epoch", number=number)["paid_micro"]
        for number in range(newest(node) + 1)
    }
    node.kill()
    node.start()
    wait_for(lambda: newest(node) > max(sums), "another epoch")
    for number, paid in sums.items():
        assert node.call("reward.epoch", number=number)["paid_micro"] == paid
    stats = node.call("reward.stats")
    board = node.call("reward.leaderboard")
    assert stats["account"] == account == board["leaders"][0]["account"]
    assert stats["total_micro"] >= sum(sums.values())
    assert board["leaders"][0]["badges"] == ["first in validator"]
    preview = node.call("reward.preview")
    assert not preview["is_over"] and preview["number"] > max(sums)
