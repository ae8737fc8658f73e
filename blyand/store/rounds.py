"""What this node saw of training, round by round, and the receipts of both sides.

For people, not for consensus: `train watch`, `report` and `explain` read it. Nothing
here is synced; a power cut may take the newest rows. Old rounds and runs are dropped.
"""

from __future__ import annotations

import math
from typing import Annotated

from blyan_proto.codec import U8, U16, U32, U64, Size, encode, message
from blyan_proto.protocols.delta import (
    MAX_GROUPS_PER_BUNDLE,
    Manifest,
    Receipt,
    Verdict,
)
from blyan_proto.types import Account, BlockId, PublicKey, Signature
from blyan_tile.learner import ExpertShare
from blyand.store.db import Store
from blyand.store.schema import ANSWERED, HEARD, LIVED, MOVES, Batch, decode_own

RUNS_KEPT = 16
ROUNDS_KEPT = 4096  # of a run
RECEIPTS_KEPT = 256  # rounds of a run whose bundles, receipts and updates are kept
BUNDLES = 16  # of one learner in one round; later ones are not noted
MAX_ROW_BYTES = 4 << 20
MAX_SEATS = 1024
PARTS = 64  # learners named in a report: those that missed most, then learnt most
MAX_GROUPS = 65_535
MAX_WHY_BYTES = 200
BEFORE = 0  # the row of the state before the first round


@message
class Part:
    """One learner's part in one round, counted over groups."""

    account: Account
    tokens: U32  # most that an update counts for it
    listed: U16  # deltas that updates list
    missed: U16  # shared groups whose update does not list it, though it has a seat
    clipped: U16  # of those listed


@message
class Led:
    """How many groups an account was primary of."""

    account: Account
    groups: U16


@message
class Takeover:
    """A group whose update another rank than the first published."""

    group: U16
    rank: U8
    account: Account


@message
class Report:
    """One round, as this node saw it."""

    run: BlockId
    round: U32  # from 0, as the chain counts
    rounds: U32
    train_micro: U64 | None = None  # this node's own, micro-nats per token
    held_out_micro: U64 | None = None
    own_tokens: U64 = 0  # learnt from on this node
    learnt_ms: U64 = 0  # in inner steps, on this node
    shares: Annotated[tuple[ExpertShare, ...], Size(0, MAX_GROUPS)] = ()  # newest only
    tokens: U64 = 0  # by all learners
    bytes_up: U64 = 0
    bytes_down: U64 = 0
    float32_bytes: U64 = 0  # of the tensors behind bytes_up
    contributions: U32 = 0
    blocks: U32 = 0
    took_ms: U64 = 0
    closed: bool = False
    closed_ms: U64 = 0  # chain time
    primaries: Annotated[tuple[Led, ...], Size(0, MAX_SEATS)] = ()
    parts: Annotated[tuple[Part, ...], Size(0, PARTS)] = ()
    learners: U16 = 0  # seated; `parts` names the first PARTS of them
    takeovers: Annotated[tuple[Takeover, ...], Size(0, MAX_GROUPS)] = ()

    @property
    def train_loss(self) -> float | None:
        """Nats per token."""
        return None if self.train_micro is None else self.train_micro / 1e6

    @property
    def held_out_loss(self) -> float | None:
        """Nats per token."""
        return None if self.held_out_micro is None else self.held_out_micro / 1e6

    @property
    def seconds(self) -> float:
        return self.took_ms / 1000


@message
class Moved:
    """The update by which a group closed a round."""

    group: U16
    update: BlockId


@message
class Moves:
    """All updates of a round, ascending by group."""

    moved: Annotated[tuple[Moved, ...], Size(0, MAX_GROUPS)]


def micro(loss: float | None) -> int | None:
    """Return a loss in micro-nats; None where there is no finite one."""
    if loss is None or not math.isfinite(loss):
        return None
    return max(0, round(loss * 1e6))


@message
class Outcome:
    """What became of one entry of a bundle."""

    group: U16
    verdict: Verdict
    tokens: U32
    bytes: U32  # of the delta; 0: there was none
    why: Annotated[str, Size(0, MAX_WHY_BYTES)]  # in words, where it was refused


@message
class Heard:
    """A bundle that came to this node as a rank, and what it answered."""

    at_ms: U64  # our clock
    manifest: Manifest
    signer: PublicKey
    signature: Signature  # of the learner, over the manifest
    outcomes: Annotated[tuple[Outcome, ...], Size(1, MAX_GROUPS_PER_BUNDLE)]
    answer: Signature  # ours, over the receipt


@message
class Answered:
    """A receipt that this node got for its own bundle."""

    at_ms: U64  # our clock
    primary: Account
    manifest: Manifest
    receipt: Receipt


class Rounds:
    """The rows. Blocking; safe from several threads."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def put(self, report: Report, place: int) -> None:
        """Keep a report at its place: rounds behind it, or BEFORE."""
        key = _place(LIVED, report.run, place)
        self._store.write_batch([(key, encode(report))], sync=False)

    def reports(self) -> list[tuple[int, Report]]:
        """Return (place, report) of all runs, by run and place."""
        return [
            (
                int.from_bytes(key[-4:], "big"),
                decode_own(Report, raw, MAX_ROW_BYTES),
            )
            for key, raw in self._store.scan(LIVED)
        ]

    def put_moves(self, run: bytes, round: int, moves: Moves) -> None:
        """Keep by which updates a round was closed."""
        key = _place(MOVES, run, round)
        self._store.write_batch([(key, encode(moves))], sync=False)

    def moves(self, run: bytes, round: int) -> Moves | None:
        """Return by which updates a round was closed; None where it is not kept."""
        raw = self._store.get(_place(MOVES, run, round))
        return None if raw is None else decode_own(Moves, raw, MAX_ROW_BYTES)

    def hear(self, heard: Heard) -> None:
        """Keep what a learner handed in; no more than BUNDLES of it in one round."""
        manifest = heard.manifest
        place = _place(HEARD, manifest.run, manifest.round) + manifest.learner
        if sum(1 for _ in self._store.scan(place)) < BUNDLES:
            key = place + _fresh(heard.at_ms, manifest.digest)
            self._store.write_batch([(key, encode(heard))], sync=False)

    def answered(self, answered: Answered) -> None:
        """Keep a receipt for a bundle of ours."""
        receipt = answered.receipt
        place = _place(ANSWERED, receipt.run, receipt.round) + answered.primary
        if sum(1 for _ in self._store.scan(place)) < BUNDLES:
            key = place + _fresh(answered.at_ms, receipt.manifest)
            self._store.write_batch([(key, encode(answered))], sync=False)

    def heard_of(self, run: bytes, round: int, learner: bytes) -> list[Heard]:
        """Return what a learner handed in here in one round, oldest first."""
        rows = self._store.scan(_place(HEARD, run, round) + learner)
        return [decode_own(Heard, raw, MAX_ROW_BYTES) for _, raw in rows]

    def receipts_of(self, run: bytes, round: int) -> list[Answered]:
        """Return the receipts that this node got in one round."""
        rows = self._store.scan(_place(ANSWERED, run, round))
        return [decode_own(Answered, raw, MAX_ROW_BYTES) for _, raw in rows]

    def trim(self, run: bytes, closed: int) -> None:
        """Drop what is too old of a run of which `closed` rounds are closed."""
        receipts = closed - RECEIPTS_KEPT
        batch: Batch = []
        for kind, first in (
            (LIVED, closed + 1 - ROUNDS_KEPT),
            *((kind, receipts) for kind in (HEARD, ANSWERED, MOVES)),
        ):
            for key, _ in self._store.scan(kind + run):
                round = int.from_bytes(key[33:37], "big")
                if round >= first:
                    break
                if kind != LIVED or round != BEFORE:
                    batch.append((key, None))
        if batch:
            self._store.write_batch(batch, sync=False)

    def forget(self, run: bytes) -> None:
        """Drop everything about a run."""
        batch: Batch = [
            (key, None)
            for kind in (LIVED, HEARD, ANSWERED, MOVES)
            for key, _ in self._store.scan(kind + run)
        ]
        self._store.write_batch(batch, sync=False)


def _place(kind: bytes, run: bytes, round: int) -> bytes:
    return kind + run + round.to_bytes(4, "big")


def _fresh(at_ms: int, manifest: bytes) -> bytes:
    return at_ms.to_bytes(8, "big") + manifest[:8]
