"""A second final checkpoint of a height: only what is shown counts, and who signed pays."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio

from blyan_proto.codec import encode
from blyand.errors import NotHere
from blyand.guard.forks import AGAIN_S, MAX_ALARMS, Forks, Places
from blyand.net.gossip import Verdict
from blyand.rules.trust.evidence import double_vote, prove
from blyand.rules.verdict import Reject
from tests.unit.daemon.chain_node import Node, grow, run
from tests.unit.daemon.chain_world import key


@pytest.fixture(autouse=True)
def short_beacons(monkeypatch):
    monkeypatch.setattr("blyand.finality.beacon.LINKS", 1024)


class Witness:
    """A node with checkpoints, and what looks at second ones; a peer shows `shown`."""

    def __init__(self, home):
        self.node = Node(home)
        self.node.sets.keep(self.node.genesis.founders)
        self.alarms, self.reported, self.shown, self.asked = {-1: "own"}, [], {}, []
        self.forks = Forks(
            self.node.genesis,
            Places(
                self.node.checkpoints.at, lambda: 1, self.node.sets.at, self._theirs
            ),
            lambda *pair: self.reported.append(pair),
            self.alarms,
            self.node._blame,
            self.node.lane,
        )
        self.node.follower.compare = self.forks.see

    async def _theirs(self, peer, height):
        self.asked.append(height)
        if height not in self.shown:
            raise NotHere(f"{peer} has no {height}")
        return self.shown[height]

    async def claims(self, peer, other, **fields):
        """Let a peer say that it has that checkpoint, and wait for what comes of it."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.forks.run)
            at = other.checkpoint
            self.forks.claimed(peer, fields.get("height", at.height), at.id)
            await trio.sleep(1)
            nursery.cancel_scope.cancel()

    def second(self, final, by=None, **changed):
        """Return another final checkpoint of that height."""
        later = final.checkpoint.time_ms + 1
        made = replace(final.checkpoint, **{"time_ms": later, **changed})
        return self.node.sealed(made, by=by)

    def proves(self, height):
        """Whether all voters were reported, with what is punished."""
        network = self.node.genesis.id
        for first, second in self.reported:
            shown = prove(double_vote(first, second, bytes(20)), network)
            assert first.statement.height == height and shown.subject
        return len(self.reported) == len(self.node.genesis.founders.members)


@pytest.fixture
def witness(tmp_path):
    return Witness(tmp_path)


@pytest.mark.parametrize("is_applied", [True, False])
def test_a_second_one_by_gossip_is_evidence_once(witness, tmp_path, is_applied):
    async def main():
        node = witness.node
        source = node
        if not is_applied:
            (tmp_path / "source").mkdir()
            source = Node(tmp_path / "source")
        finals, _ = await grow(source, 1)
        if not is_applied:  # it waits for its block
            await node.follower.gossip_check("a", encode(finals[0]))
        other = encode(witness.second(finals[0]))
        for _ in range(2):
            assert await node.follower.gossip_check("b", other) is Verdict.IGNORE
        assert witness.proves(1)
        assert list(witness.alarms) == [-1, 1] and "signed twice" in witness.alarms[1]
        # The same one with other votes is no second one.
        await node.follower.gossip_check("b", encode(finals[0]))
        assert len(witness.reported) == len(finals[0].votes)

    run(main)


def test_who_makes_one_up_by_gossip_pays_for_it(witness):
    async def main():
        finals, _ = await grow(witness.node, 1)
        for lie in (
            witness.second(finals[0], by=key("stranger")),
            replace(witness.second(finals[0]), votes=finals[0].votes),
        ):
            with pytest.raises(Reject):
                await witness.node.follower.gossip_check("b", encode(lie))
        assert list(witness.alarms) == [-1] and not witness.reported

    run(main)


def test_a_claim_alone_is_no_alarm(witness):
    async def main():
        finals, _ = await grow(witness.node, 1)
        other = witness.second(finals[0])
        await witness.claims("liar", other)
        witness.shown[1] = witness.second(finals[0], by=key("stranger"))
        await witness.claims("forger", other)
        assert list(witness.alarms) == [-1] and not witness.reported
        assert [peer for peer, _ in witness.node.blamed] == ["forger"]
        await witness.claims("liar", other)
        assert len(witness.asked) == 2, "not so soon again"
        witness.shown[1] = other
        await trio.sleep(AGAIN_S)
        await witness.claims("liar", other)
        assert witness.proves(1) and list(witness.alarms) == [-1, 1]

    run(main)


def test_where_the_sets_differ_it_is_looked_for_where_they_parted(witness):
    async def main():
        finals, _ = await grow(witness.node, 9)
        seconds = [witness.second(one, validators_root=bytes(32)) for one in finals]
        seconds[4] = witness.second(finals[4])
        witness.shown = dict(enumerate([*finals[:4], *seconds[4:]], 1))
        await witness.claims("a", seconds[8])
        assert witness.proves(5) and list(witness.alarms) == [-1, 5]
        assert len(witness.asked) <= 5 and not witness.node.blamed

    run(main)


def test_alarms_of_this_node_itself_stay(witness):
    async def main():
        finals, _ = await grow(witness.node, MAX_ALARMS + 2)
        for one in finals:
            await witness.forks.see(None, witness.second(one))
        assert list(witness.alarms) == [-1, *range(3, MAX_ALARMS + 3)]

    run(main)
