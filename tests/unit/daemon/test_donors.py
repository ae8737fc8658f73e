"""Whose deltas are taken: near nodes' first, the rest from afar, single ones where some
are here."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from blyan_proto.block.model import Contribution
from blyan_proto.codec import encode
from blyan_proto.protocols.delta import Bundle, Entry
from blyan_proto.types import Role, bitmap
from blyand.errors import NotHere
from blyand.rules.model.election import ranks
from blyand.rules.records import RUNS, SCHEDULES, RunRecord, Schedule, Seat
from blyand.rules.view import Overlay
from blyand.store.blobs import BlobStore
from blyand.training.donors import WAIT_S as MOST_S
from blyand.training.donors import Donors
from blyand.training.passed import Passed
from tests.sim.network import InlineLane
from tests.unit.daemon.chain_world import run_of
from tests.vectors.make_proto import BUNDLE, DELTA, KEY, MANIFEST, UPDATE

RUN, GROUP = UPDATE.run, UPDATE.group
ACCOUNTS = [bytes([n]) * 20 for n in range(1, 5)]
WAIT_S = 2.5  # a quarter of the run's deadline


class World:
    """Four seats; `regions` says who is near; `gives` who has the blob, and when."""

    def __init__(self, home: Any) -> None:
        held = bitmap({GROUP}, GROUP + 1)
        seats = [Seat(a, a + bytes(13), int(Role.LEARN), 64, held) for a in ACCOUNTS]
        self.schedule = Schedule(RUN, UPDATE.round, 1, bytes(32), tuple(seats))
        self.view = Overlay(SimpleNamespace(get=lambda key: None))  # type: ignore[arg-type]
        SCHEDULES.put(self.view, self.schedule, RUN, UPDATE.round)
        record = RunRecord(RUN, run_of(RUN, RUN), ACCOUNTS[0], 0, (), False)
        RUNS.put(self.view, record, RUN)
        self.blobs = BlobStore(home / "blobs")
        self.passed = Passed()
        self.near: set[bytes] = set()
        self.edge_: Seat | None = None
        self.gives: dict[str, float] = {}  # peer -> from when on
        self.asked: list[tuple[str, ...]] = []
        self.false: set[str] = set()  # peers whose pieces are others
        self.cut: list[tuple[str, int]] = []  # peer, pieces asked for
        deltas = [replace(DELTA, learner=a) for a in ACCOUNTS]
        self.raw = [encode(delta) for delta in deltas]
        self.blob = self.blobs.put_bytes(b"".join(self.raw))
        self.blobs.delete(self.blob)
        at, parts = 0, []
        for delta, raw in zip(deltas, self.raw):
            parts.append(
                Contribution(delta.learner, delta.digest, at, len(raw), 1, 1, 1, 0)
            )
            at += len(raw)
        first, second, *_ = ranks(self.schedule, GROUP)
        signed = tuple(
            replace(UPDATE.cosignatures[0], signer=seat.key) for seat in (first, second)
        )
        self.author, self.second = first.account, second.account
        self.update = replace(
            UPDATE, contributions=tuple(parts), blob=self.blob, cosignatures=signed
        )
        manifest = replace(MANIFEST, entries=(Entry(GROUP, deltas[0].digest),))
        self.own = Bundle(manifest, KEY.public, BUNDLE.signature, (deltas[0],))

    # what Donors sees of ways, fetcher and peers

    def near_of(self, schedule: Schedule, accounts: Any) -> list[str]:
        return [one.hex() for one in accounts if one in self.near]

    async def get(
        self, blob: bytes, hints: Any, *, most_bytes: int, only: bool = False
    ) -> None:
        assert most_bytes == sum(map(len, self.raw))
        self.asked.append(tuple(hints))
        await trio.sleep(0.01)
        now = trio.current_time() - self.began
        if not any(now >= self.gives.get(peer, 1e9) for peer in hints):
            raise NotHere("not yet")
        self.blobs.put_bytes(b"".join(self.raw))

    async def pieces(self, peer: str, blob: bytes, spans: Any) -> list[bytes]:
        await trio.lowlevel.checkpoint()
        self.cut.append((peer, len(spans)))
        whole = b"".join(self.raw)
        if peer in self.false:
            whole = whole[::-1]
        return [whole[s.offset : s.offset + s.bytes] for s in spans]

    def bring(self) -> float:
        ways = SimpleNamespace(
            near=self.near_of,
            edge=lambda schedule, group: self.edge_,
        )
        donors = Donors(
            lambda: self.view,
            ways,  # type: ignore[arg-type]
            SimpleNamespace(get=self.get),  # type: ignore[arg-type]
            self.blobs,
            InlineLane(),  # type: ignore[arg-type]
            self.pieces,
            bytes.hex,
            self.passed,
        )

        async def main() -> float:
            self.began = trio.current_time()
            await donors.bring(self.update, self.author)
            return float(trio.current_time() - self.began)

        took_s: float = trio.run(
            main, clock=trio.testing.MockClock(autojump_threshold=0)
        )
        assert self.blobs.has(self.blob)
        return took_s


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path)
    made.gives[made.author.hex()] = 0.0
    yield made
    made.blobs.close()


def test_a_near_signer_is_asked_and_nobody_else(world: World):
    world.near = {world.second}
    world.gives[world.second.hex()] = 0.0
    assert world.bring() < 0.1
    assert world.asked == [(world.second.hex(),)] and not world.cut


def with_edge(world: World) -> Seat:
    """Let a near learner that signed nothing be the edge."""
    signed = {world.author, world.second}
    edge = next(s for s in world.schedule.seats if s.account not in signed)
    world.edge_, world.near = edge, {edge.account}
    return edge


def test_the_edge_is_waited_for(world: World):
    edge = with_edge(world)
    world.gives[edge.account.hex()] = 1.0
    assert 1.0 <= world.bring() < 1.3
    assert set(world.asked) == {(edge.account.hex(),)}


def test_an_edge_that_never_gives_is_done_without(world: World):
    with_edge(world)
    assert WAIT_S <= world.bring() < WAIT_S + 0.3
    assert world.asked[-1] == (world.author.hex(),)


def test_an_edge_is_not_waited_for_as_long_as_a_long_deadline_allows(world: World):
    with_edge(world)
    run = replace(run_of(RUN, RUN), deadline_ms=3_600_000)
    RUNS.put(world.view, RunRecord(RUN, run, ACCOUNTS[0], 0, (), False), RUN)
    assert MOST_S <= world.bring() < MOST_S + 0.3


def test_nobody_waits_for_an_edge_with_a_draft(world: World):
    with_edge(world)
    world.update = replace(world.update, cosignatures=world.update.cosignatures[:1])
    assert world.bring() < 0.1
    assert world.asked == [(world.author.hex(),)]


def test_what_passed_here_is_not_fetched_again(world: World):
    world.passed.note(world.own)
    world.false = {world.author.hex()}
    assert world.bring() < 0.1
    assert world.cut == [(world.author.hex(), 3), (world.second.hex(), 3)]
    assert not world.asked, "no blob was fetched"


def test_false_pieces_end_in_the_blob_itself(world: World):
    world.passed.note(world.own)
    world.false = {world.author.hex(), world.second.hex()}
    world.bring()
    assert world.asked == [(world.author.hex(),)]


def test_old_deltas_make_room(world: World):
    size = len(world.raw[0])
    passed = Passed(most_bytes=size)
    passed.note(world.own)
    (digest,) = (entry.delta for entry in world.own.manifest.entries)
    assert passed.get(digest) == world.raw[0]
    other = replace(
        world.own, manifest=replace(MANIFEST, entries=(Entry(GROUP, bytes(32)),))
    )
    passed.note(other)
    assert passed.get(digest) is None and passed.get(bytes(32)) is not None
