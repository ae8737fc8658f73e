"""Handing a round in: silent, broken and refusing ranks are passed over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from blyan_proto.constants import RANKS
from blyan_proto.errors import DecodeError
from blyan_proto.protocols.delta import Bundle, EntryVerdict, Receipt, Verdict
from blyan_proto.protocols.edge import Parcel
from blyan_proto.signing import SigningKey
from blyan_proto.types import Role, bitmap
from blyan_tile.learner import GroupDelta, LearnResult
from blyand.errors import NotHere
from blyand.rules.model.election import ranks
from blyand.rules.records import Schedule, Seat
from blyand.rules.view import Overlay
from blyand.training.delivery import EDGE_GRACE_MS, Delivery, Reach, Round
from blyand.training.learner import Learner
from blyand.training.passed import Passed

DEADLINE_S = 10.0
NOTHING = LearnResult((), True, 0, 0, 0, ())
GROUPS = frozenset({0, 1, 2, 3})


class World:
    """Four seats that hold everything; `answers` says how each account behaves."""

    def __init__(self) -> None:
        self.keys = [SigningKey(bytes([n]) * 32) for n in range(1, 5)]
        role, held = int(Role.LEARN), bitmap(GROUPS, 4)
        seats = [Seat(key.account, key.public, role, 64, held) for key in self.keys]
        self.schedule = Schedule(bytes(32), 0, 1, bytes(32), tuple(seats))
        self.rounds = dict.fromkeys(GROUPS, 0)
        self.answers: dict[bytes, Any] = {}
        self.sent: list[tuple[float, bytes, list[int]]] = []
        self.edge: Seat | None = None
        self.straight: list[bytes] = []  # who got deltas
        self.carried: list[Parcel] = []
        self.avoided: list[bytes] = []
        record = SimpleNamespace(
            id=bytes(32),
            run=SimpleNamespace(
                model=b"m", deadline_ms=DEADLINE_S * 1000, grace_ms=2000
            ),
        )
        layout = SimpleNamespace(groups=[])
        self.turn = Round(record, self.schedule, layout, GROUPS)  # type: ignore[arg-type]

    def head(self, model: bytes, group: int) -> Any:
        return SimpleNamespace(run=bytes(32), rounds=self.rounds[group], tiles=())

    async def push(self, peer: str, bundle: Bundle) -> Receipt:
        account = bytes.fromhex(peer)
        groups = [entry.group for entry in bundle.manifest.entries]
        self.sent.append((trio.current_time(), account, groups))
        self.straight += [account] * bool(bundle.deltas)
        answer = self.answers.get(account, Verdict.TAKEN)
        if answer == "silent":
            await trio.sleep_forever()
        if isinstance(answer, Exception):
            raise answer
        named = any(entry.delta for entry in bundle.manifest.entries)
        is_announced = named and not bundle.deltas
        if answer is Verdict.TAKEN and not is_announced:
            self.rounds.update(dict.fromkeys(groups, 1))
        verdicts = [EntryVerdict(group, answer) for group in groups]
        # a receipt may name what nobody asked about
        verdicts.append(EntryVerdict(9, Verdict.NOT_PRIMARY))
        return Receipt(bytes(32), 0, tuple(verdicts), bytes(32), bytes(33), bytes(64))

    def hand_in(self, result: LearnResult = NOTHING) -> float:
        """Hand everything in; return how long it took."""
        me = SigningKey(b"\x09" * 32)
        reach = Reach(self.push, self.carry, self.never, bytes.hex, lambda peer: True)
        journal = SimpleNamespace(handed_over=lambda *_: None)
        ways = SimpleNamespace(
            edge=lambda schedule, group: self.edge, avoid=self.avoided.append
        )
        delivery = Delivery(
            me, bytes(32), self, reach, journal, ways, Passed()  # type: ignore[arg-type]
        )

        async def main() -> float:
            await delivery.hand_in(self.turn, result, lambda _: None)
            return trio.current_time()

        clock = trio.testing.MockClock(autojump_threshold=0)
        began = clock.current_time()
        return trio.run(main, clock=clock) - began

    async def carry(
        self, edge: bytes, parcel: Parcel, signers: Sequence[bytes]
    ) -> list[Receipt | None]:
        self.carried.append(parcel)
        answer = self.answers[edge]
        if answer == "silent":
            await trio.sleep_forever()
        if isinstance(answer, Exception):
            raise answer
        return [None for _ in parcel.bundles]

    async def never(self, bundle: Bundle) -> Receipt:
        raise AssertionError("this node is no rank")

    def first_ranks(self) -> set[bytes]:
        return {ranks(self.schedule, group)[0].account for group in GROUPS}


def test_each_primary_gets_one_bundle_with_its_groups():
    world = World()
    assert world.hand_in() < 1
    assert {account for _, account, _ in world.sent} == world.first_ranks()
    assert sorted(g for _, _, groups in world.sent for g in groups) == sorted(GROUPS)


@pytest.mark.parametrize(
    "answer", [NotHere("gone"), DecodeError("junk"), Verdict.NOT_PRIMARY]
)
def test_a_rank_that_cannot_or_lies_is_passed_over_at_once(answer: object):
    world = World()
    world.answers[ranks(world.schedule, 0)[0].account] = answer
    assert world.hand_in() < DEADLINE_S / 2


def test_a_silent_rank_costs_its_groups_the_deadline_and_the_others_nothing():
    world = World()
    silent = ranks(world.schedule, 0)[0].account
    world.answers[silent] = "silent"
    assert DEADLINE_S <= world.hand_in() < DEADLINE_S + 2
    began = world.sent[0][0]
    for moment, account, groups in world.sent:
        waited = any(ranks(world.schedule, g)[0].account == silent for g in groups)
        if not waited:
            assert moment - began < 1


def test_a_delta_names_the_version_that_it_was_made_for():
    """The head may have been rolled back to another version of the same round."""
    world = World()
    made_for, now = (
        SimpleNamespace(tiles=(SimpleNamespace(weights=bytes([n]) * 32),), block=b"")
        for n in (1, 2)
    )
    world.head = lambda *_: SimpleNamespace(  # type: ignore[method-assign]
        run=bytes(32), rounds=world.rounds[0], tiles=now.tiles
    )
    layout = SimpleNamespace(groups=[SimpleNamespace(elements=4)])
    world.turn = replace(
        world.turn, groups=frozenset({0}), layout=layout, bases={0: made_for}
    )
    change = GroupDelta(0, (b"change",), 7, bytes(32), bytes(32))
    bundles = []
    push = world.push

    async def noting(peer: str, bundle: Bundle) -> Receipt:
        bundles.append(bundle)
        return await push(peer, bundle)

    world.push = noting  # type: ignore[method-assign]
    world.hand_in(LearnResult((change,), True, 1, 7, 0, ()))
    *announced, bundle = bundles
    assert [delta.base for delta in bundle.deltas] == [(bytes([1]) * 32,)]
    assert all(not one.deltas for one in announced) and len(announced) == RANKS
    assert all(one.manifest == bundle.manifest for one in announced)


ONE_CHANGE = LearnResult(
    (GroupDelta(0, (b"change",), 7, bytes(32), bytes(32)),), True, 1, 7, 0, ()
)


def with_edge() -> World:
    """A world in which an edge carries the deltas of one group."""
    world = World()
    layout = SimpleNamespace(groups=[SimpleNamespace(elements=4)] * len(GROUPS))
    base = SimpleNamespace(tiles=(SimpleNamespace(weights=bytes(32)),), block=b"")
    world.edge = world.schedule.seats[3]
    world.turn = replace(
        world.turn,
        layout=layout,
        bases=dict.fromkeys(GROUPS, base),
        groups=frozenset({0}),
    )
    return world


def test_a_run_that_leaves_an_edge_no_time_goes_without():
    world = with_edge()
    world.turn.record.run.grace_ms = EDGE_GRACE_MS - 1  # type: ignore[misc]
    world.hand_in(ONE_CHANGE)
    assert not world.carried and not world.avoided
    assert world.straight == [ranks(world.schedule, 0)[0].account]


@pytest.mark.parametrize(
    ("answer", "longest_s", "is_avoided"),
    [
        ("none", 0.5, False),
        (NotHere("gone"), 0.5, False),
        (DecodeError("a forged receipt"), 0.5, True),
        ("silent", 1.5, True),
    ],
)
def test_what_an_edge_did_not_bring_goes_straight_on(answer, longest_s, is_avoided):
    world = with_edge()
    world.answers[world.edge.account] = answer
    leading = ranks(world.schedule, 0)[0].account
    took_s = world.hand_in(ONE_CHANGE)
    (parcel,) = world.carried
    assert [one.to for one in parcel.bundles] == [leading]
    assert world.avoided == [world.edge.account] * is_avoided
    assert world.straight == [leading], "the primary itself, not another rank"
    assert took_s < longest_s + 0.5


def test_a_round_that_begins_at_another_version_is_no_longer_handed_in():
    world = World()
    base = SimpleNamespace(block=b"a", run=bytes(32), rounds=0)
    turn = replace(world.turn, bases=dict.fromkeys(GROUPS, base))
    heads = dict.fromkeys(GROUPS, base)
    holder = SimpleNamespace(head=lambda model, group: heads[group])
    delivery = Delivery(
        None, bytes(32), holder, None, None, None, None  # type: ignore[arg-type]
    )
    learner = SimpleNamespace(
        _view=lambda: Overlay(Nothing()), _holder=holder, _delivery=delivery
    )

    def is_current() -> bool:
        return Learner._is_current(learner, turn)  # type: ignore[arg-type]

    assert is_current()
    heads[0] = SimpleNamespace(block=b"b", run=bytes(32), rounds=1)
    assert is_current(), "a group that moved on is done"
    heads[1] = SimpleNamespace(block=b"c", run=bytes(32), rounds=0)
    assert not is_current()


class Nothing:
    """State in which nothing is scheduled."""

    def get(self, key: bytes) -> None:
        return None
