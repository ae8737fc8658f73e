"""What was said to a peer stands, whether it could be written down or not."""

from __future__ import annotations

from types import SimpleNamespace

import trio

from blyan_proto.protocols.delta import (
    Bundle,
    Entry,
    EntryVerdict,
    Manifest,
    Receipt,
    Verdict,
)
from blyan_proto.signing import SigningKey
from blyand.errors import DiskFull
from blyand.protocols.delta import signed_receipt
from blyand.rules.records import NODES, RUNS
from blyand.store.rounds import Answered, Heard
from blyand.training.keeping import Keeping
from tests.sim.network import InlineLane

KEY = SigningKey(b"p" * 32)
RUN, LEARNER = bytes(32), b"l" * 20
MANIFEST = Manifest(RUN, 3, LEARNER, (Entry(1, None),), bytes(32), bytes(32))
BUNDLE = Bundle(MANIFEST, bytes(33), bytes(64), ())
RECEIPT = signed_receipt(KEY, bytes(32), MANIFEST, [EntryVerdict(1, Verdict.REFUSED)])


class Disk:
    """Keeps what it is given, while there is room."""

    def __init__(self) -> None:
        self.kept: list[Heard | Answered] = []
        self.is_full = False

    def hear(self, one: Heard | Answered) -> None:
        if self.is_full:
            raise DiskFull("the disk is full; make room")
        self.kept.append(one)

    answered = hear


async def push(peer: str, bundle: Bundle) -> Receipt:
    return RECEIPT


def test_receipts_are_kept_and_a_full_disk_takes_none_back(monkeypatch):
    monkeypatch.setattr(RUNS, "get", lambda view, run: SimpleNamespace(closed=3))
    monkeypatch.setattr(NODES, "get", lambda view, account: account == LEARNER)
    disk = Disk()
    clock = SimpleNamespace(now_ms=lambda: 7)
    keeping = Keeping(lambda: None, disk, InlineLane(), clock)  # type: ignore[arg-type]
    pushed = keeping.pushing(push)

    async def both() -> None:
        await keeping.heard(BUNDLE, RECEIPT, {1: "no seat"})
        assert await pushed("peer", BUNDLE) is RECEIPT

    trio.run(both)
    heard, answered = disk.kept
    assert isinstance(heard, Heard) and isinstance(answered, Answered)
    (outcome,) = heard.outcomes
    assert (outcome.verdict, outcome.why) == (Verdict.REFUSED, "no seat")
    assert (answered.primary, answered.receipt) == (KEY.account, RECEIPT)
    disk.is_full = True
    trio.run(both)
    assert len(disk.kept) == 2
