"""The journal: which rounds are judged, when, and what is still to come."""

import dataclasses
from types import SimpleNamespace

import trio
import trio.testing

from blyan_proto.protocols.delta import Entry, Manifest, Verdict
from blyan_tile.create import run_preset
from blyand.errors import Unavailable
from blyand.events import Broadcast, CheckpointFinalised
from blyand.rules.records import RUNS, RunRecord
from blyand.rules.view import Overlay
from blyand.store.memory import MemoryStore
from blyand.store.rounds import (
    BUNDLES,
    RECEIPTS_KEPT,
    RUNS_KEPT,
    Heard,
    Moves,
    Outcome,
    Report,
    Rounds,
)
from blyand.training.journal import Journal
from tests.sim.network import InlineLane

US, OTHERS = b"u" * 20, b"o" * 20


def record_of(author, closed=0, finished=False):
    run = run_preset("tiny", bytes(32), (bytes(32),), 3, 0)
    return RunRecord(author + bytes(12), run, author, closed, (), finished)


class Nothing:
    def get(self, key):
        return None

    def scan(self, prefix):
        return iter(())


class World:
    def __init__(self, rounds=None):
        self.view = Overlay(Nothing())
        self.events = Broadcast()
        self.answers = {}  # (run, round) -> loss, or an event to wait for
        self.journal = Journal(
            lambda: self.view,
            lambda: {"/blyan/delta/1": (100, 0), "/blyan/blobs/1": (0, 50)},
            SimpleNamespace(),
            SimpleNamespace(),
            self.events,
            SimpleNamespace(),
            SimpleNamespace(),
            US,
            rounds or Rounds(MemoryStore()),
            InlineLane(),
        )
        self.journal.held_out_loss = self.loss
        self.asked = []

    async def loss(self, record, round):
        self.asked.append(round)
        answer = self.answers.get(round, 1.0)
        if isinstance(answer, trio.Event):
            await answer.wait()
            answer = 2.0
        if isinstance(answer, Exception):
            self.answers[round] = 3.0
            raise answer
        return answer

    async def put(self, record):
        RUNS.put(self.view, record, record.id)
        self.events.publish(CheckpointFinalised(None, b"", ()))
        await trio.testing.wait_all_tasks_blocked()


def test_our_runs_are_judged_before_their_rounds_and_after_the_newest():
    async def main():
        world, record = World(), record_of(US)
        journal = world.journal
        gate = world.answers[None] = trio.Event()
        async with trio.open_nursery() as nursery:
            await nursery.start(journal.run)
            await world.put(record)
            assert journal.awaits(record, None) and not journal.awaits(record, 0)
            gate.set()
            await trio.testing.wait_all_tasks_blocked()
            assert journal.before(record.id) == 2.0
            assert not journal.awaits(record, None)
            slow = world.answers[0] = trio.Event()
            first = dataclasses.replace(record, closed=1)
            await world.put(first)
            assert journal.awaits(first, 0)
            last = dataclasses.replace(record, closed=3, finished=True)
            await world.put(last)  # two rounds close while the first is judged
            assert journal.awaits(last, 0) and not journal.awaits(last, 1)
            assert journal.awaits(last, 2)
            slow.set()
            await trio.testing.wait_all_tasks_blocked()
            assert world.asked == [None, 0, 2]
            losses = [report.held_out_loss for report in journal.reports(record.id)]
            assert losses == [2.0, None, 1.0]
            assert not any(journal.awaits(last, round) for round in (None, 0, 1, 2))
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_what_is_never_judged_here():
    async def main():
        world = World()
        theirs, old = record_of(OTHERS), record_of(US, closed=3, finished=True)
        async with trio.open_nursery() as nursery:
            await world.put(old)  # it ended before this daemon began
            await nursery.start(world.journal.run)
            await world.put(theirs)
            assert world.asked == []
            assert not world.journal.awaits(theirs, None)
            assert not world.journal.awaits(old, 2)
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_a_judgement_that_peers_could_not_help_with_is_tried_again():
    async def main():
        world, record = World(), record_of(US)
        world.answers[None] = Unavailable("no expert")
        async with trio.open_nursery() as nursery:
            await nursery.start(world.journal.run)
            await world.put(record)
            with trio.fail_after(60):
                while world.journal.before(record.id) is None:
                    await world.journal.changed()
            assert world.journal.before(record.id) == 3.0
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.01))


def test_what_this_node_learnt_is_counted():
    async def main():
        world, record = World(), record_of(OTHERS)
        await world.put(record)
        world.journal.trained(record.id, 1, 2_500_000, 640, 1.0)
        world.journal.trained(record.id, 0, 3_500_000, 640, 1.0)
        reports = world.journal.all_reports(record.id)
        assert [(r.round, r.train_loss) for r in reports] == [(0, 3.5), (1, 2.5)]
        assert sum(r.own_tokens for r in reports) == 1280
        assert world.journal.reports(record.id) == []

    trio.run(main)


def test_what_was_seen_outlives_the_daemon():
    kept = Rounds(MemoryStore())
    record = record_of(US)

    async def life(world, body):
        async with trio.open_nursery() as nursery:
            RUNS.put(world.view, record, record.id)
            await nursery.start(world.journal.run)
            await trio.testing.wait_all_tasks_blocked()
            await body(world)
            nursery.cancel_scope.cancel()

    async def first(world):
        await world.put(record)
        world.journal.trained(record.id, 0, 3_500_000, 640, 1.0)
        await world.put(dataclasses.replace(record, closed=1))
        assert world.asked == [None, 0]

    async def second(world):
        await world.put(dataclasses.replace(record, closed=1))
        assert world.asked == []  # judged in a former life
        assert world.journal.before(record.id) == 1.0
        (report,) = world.journal.reports(record.id)
        assert (report.train_loss, report.held_out_loss) == (3.5, 1.0)
        assert (report.round, report.own_tokens) == (0, 640)

    trio.run(life, World(kept), first)
    trio.run(life, World(kept), second)


def test_old_runs_make_room_for_new_ones():
    kept, now = Rounds(MemoryStore()), 5_000
    for number in range(RUNS_KEPT + 3):
        run = bytes([number]) * 32
        kept.put(Report(run, 0, 1, closed=True, closed_ms=now - number), 1)

    async def main():
        world, record = World(kept), record_of(US)
        async with trio.open_nursery() as nursery:
            RUNS.put(world.view, record, record.id)
            await nursery.start(world.journal.run)
            await world.put(record)
            await world.put(dataclasses.replace(record, closed=3, finished=True))
            nursery.cancel_scope.cancel()
        left = {report.run[0] for _, report in kept.reports()}
        assert left >= {0, 1} and RUNS_KEPT + 2 not in left
        assert len(left) == RUNS_KEPT

    trio.run(main)


def test_receipts_are_kept_of_the_last_rounds_and_no_flood_of_them():
    kept = Rounds(MemoryStore())
    manifest = Manifest(
        bytes(32), 0, OTHERS, (Entry(0, None),), bytes(32), bytes(32), bytes(32)
    )
    outcome = Outcome(0, Verdict.TAKEN, 0, 0, "")
    for at in range(BUNDLES + 5):
        kept.hear(Heard(at, manifest, bytes(33), bytes(64), (outcome,), bytes(64)))
    heard = kept.heard_of(bytes(32), 0, OTHERS)
    assert [one.at_ms for one in heard] == list(range(BUNDLES))
    kept.put_moves(bytes(32), 0, Moves(()))
    kept.trim(bytes(32), RECEIPTS_KEPT)
    assert kept.heard_of(bytes(32), 0, OTHERS) and kept.moves(bytes(32), 0)
    kept.trim(bytes(32), RECEIPTS_KEPT + 1)
    assert not kept.heard_of(bytes(32), 0, OTHERS)
    assert kept.moves(bytes(32), 0) is None
