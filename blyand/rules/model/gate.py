"""The gate before adoption: drawn validators measure a round's heads against the adopted
ones on windows that nobody could know while they were trained (POL-01, POL-06, POL-07).

They seal their scores first and show them once enough have: each is its own work, or a
guess. Everything is a sum of integers, so that every node decides alike. A version passes when
the bound of the mean difference of the median score stays below the run's margin.
"""

from __future__ import annotations

import enum
from collections.abc import Collection
from dataclasses import replace
from typing import Annotated

from blyan_proto.block.block import Block
from blyan_proto.block.gate import Gate, Score, SealedScore
from blyan_proto.codec import U8, U32, U64, Size, message
from blyan_proto.constants import MAX_VALIDATORS
from blyan_proto.digest import Domain, digest
from blyan_proto.types import Account, BlockId, Hash
from blyand.rules.chain.appointment import voters
from blyand.rules.model.adoption import move_heads, versions_of
from blyand.rules.model.dispute import is_doubted
from blyand.rules.model.model import heads_root, require_model
from blyand.rules.model.places import open_runs
from blyand.rules.model.run import newest_adoptable
from blyand.rules.records import (
    CLOCK,
    GROUPS,
    RUNS,
    VERSIONS_KEPT,
    Clock,
    RunRecord,
    Version,
)
from blyand.rules.table import Table
from blyand.rules.verdict import Reject
from blyand.rules.view import Overlay, View

PATIENCE = 2  # deadlines of the run without a quorum; then others are drawn
MAX_DRAWS = 4
MOST_DRAWS = 64  # of one validator, whatever its weight
OUTLIER_MICRO = 1_000  # from the median, nats per token: more than devices explain


class Stand(enum.IntEnum):
    """Where a version stands before the gate."""

    OPEN = 0
    PASSED = 1  # adopted
    FAILED = 2
    EXPIRED = 3  # no quorum in time, or overtaken


@message
class Scored:
    """One validator's sums."""

    account: Account
    windows: U32
    before_micro: U64
    after_micro: U64
    squares: U64

    @property
    def rise_micro(self) -> int:
        """Mean difference, after less before, micro-nats per token."""
        return (self.after_micro - self.before_micro) // self.windows


@message
class Seal:
    """A drawn validator's promise of a score."""

    account: Account
    seal: Hash


Accounts = Annotated[tuple[Account, ...], Size(0, MAX_VALIDATORS)]


@message
class Gated:
    """A version before the gate, and what was said about it."""

    run: BlockId
    round: U32
    model: BlockId
    beacon: Hash  # draws windows and validators; younger than every update of the round
    before: Hash
    after: Hash
    opened_ms: U64
    drawn_ms: U64  # when validators were drawn last
    draws: U8
    drawn: Accounts
    seals: Annotated[tuple[Seal, ...], Size(0, MAX_VALIDATORS)]
    sealed_ms: U64 | None  # when the last one counted; scores are shown since
    scores: Annotated[tuple[Scored, ...], Size(0, MAX_VALIDATORS)]
    withheld: Accounts  # who sealed and did not show; drawn no more for this version
    stand: Stand
    median: Account | None  # whose score decided
    outliers: Accounts

    def seal_of(self, account: bytes) -> bytes | None:
        """Return what an account sealed."""
        found = (one.seal for one in self.seals if one.account == account)
        return next(found, None)


OPEN_GATES = Table(b"open-gate", Gated)  # run id
GATES = Table(b"gate", Gated)  # run id: the last one that was decided


def passes(rule: Gate, scored: Scored) -> bool:
    """True when mean + bound * standard error of the difference is at most the margin.

    With S the sum and Q the sum of squares of n differences, the squared standard error
    is (n Q - S^2) / (n^2 (n - 1)); both sides are multiplied out.
    """
    n, rise = scored.windows, scored.after_micro - scored.before_micro
    room = n * rule.margin_micro - rise
    spread = n * scored.squares - rise * rise
    return room >= 0 and rule.bound_milli**2 * spread <= 10**6 * room**2 * (n - 1)


def quorum_of(rule: Gate) -> int:
    """Return how many scores decide: more than two thirds of those drawn."""
    return 2 * rule.validators // 3 + 1


def committee(
    weights: dict[bytes, int],
    taken: Collection[bytes],
    count: int,
    beacon: bytes,
    run: bytes,
    round: int,
    draws: int,
) -> tuple[bytes, ...]:
    """Draw `count` accounts that are not taken: best of weight numbers; ascending.

    `draws`: how often was drawn before.
    """
    place = beacon, run, round.to_bytes(4, "little"), draws.to_bytes(1, "little")

    def best(account: bytes) -> bytes:
        return max(
            digest(
                Domain.ELECTION, b"gate", *place, account, turn.to_bytes(1, "little")
            )
            for turn in range(min(weights[account], MOST_DRAWS))
        )

    free = [one for one, weight in weights.items() if weight and one not in taken]
    return tuple(sorted(sorted(free, key=best, reverse=True)[:count]))


def advance(view: Overlay, runs: Collection[bytes], height: int) -> None:
    """At the end of a checkpoint: open gates of `runs`, decide, draw anew, give up."""
    for gated in list(OPEN_GATES.scan(view)):
        _look_at(view, gated, height)
    for run in runs:
        _open_next(view, run)


def open_before(view: View) -> tuple[bytes, ...]:
    """Return the runs with a gate that are open, or have a version before it."""
    opened = (record.id for record in open_runs(view) if record.run.gate)
    waiting = (gated.run for gated in OPEN_GATES.scan(view))
    return tuple(sorted({*opened, *waiting}))


def _open_next(view: Overlay, run: bytes) -> None:
    """Open the gate for the newest closed round that is up, unless one waits there."""
    record = RUNS.get(view, run)
    if record is None or record.run.gate is None or OPEN_GATES.get(view, run):
        return
    last = GATES.get(view, run)
    after = -1 if last is None else last.round
    round = newest_adoptable(record.run, record.closed)
    if round is not None and round > after:
        _open(view, record, record.run.gate, round)


def _open(view: Overlay, record: RunRecord, rule: Gate, round: int) -> None:
    model = require_model(view, record.run.model)
    versions = versions_of(view, record.id, round, model.groups)
    clock = CLOCK.get(view)
    assert clock is not None
    if versions is None or model.heads_root is None:
        return
    beacon = clock.beacons[-1]
    gated = Gated(
        run=record.id,
        round=round,
        model=model.id,
        beacon=beacon,
        before=model.heads_root,
        after=heads_root([version.tiles for version in versions]),
        opened_ms=clock.time_ms,
        drawn_ms=clock.time_ms,
        draws=1,
        drawn=committee(voters(view), (), rule.validators, beacon, record.id, round, 0),
        seals=(),
        sealed_ms=None,
        scores=(),
        withheld=(),
        stand=Stand.OPEN,
        median=None,
        outliers=(),
    )
    OPEN_GATES.put(view, gated, record.id)


def seal(view: Overlay, block: Block, payload: SealedScore) -> None:
    """Execute a validator's promise of a score."""
    gated, account = _waiting(view, payload), block.header.account
    if payload.beacon != gated.beacon:
        raise Reject("it is about windows of another draw")
    if account not in gated.drawn:
        raise Reject("only a validator that was drawn scores")
    if gated.seal_of(account) is not None:
        raise Reject("this validator has sealed a score")
    if gated.sealed_ms is not None:
        raise Reject("scores are shown already; no more are sealed")
    seals = (*gated.seals, Seal(account, payload.seal))
    OPEN_GATES.put(view, replace(gated, seals=seals), gated.run)


def score(view: Overlay, block: Block, payload: Score, height: int) -> None:
    """Execute a validator's score; the one that makes the quorum decides."""
    gated, account = _waiting(view, payload), block.header.account
    heads = gated.before, gated.after
    if (payload.before, payload.after) != heads:
        raise Reject("it scores other heads")
    if gated.sealed_ms is None:
        raise Reject("scores are sealed still; show it when enough are")
    if payload.seal(account) != gated.seal_of(account):
        raise Reject("it is not the score that this validator sealed")
    if any(one.account == account for one in gated.scores):
        raise Reject("this validator has scored")
    rule = _rule(view, gated)
    if payload.windows > rule.windows:
        raise Reject(f"the run asks for {rule.windows} windows")
    said = Scored(
        account,
        payload.windows,
        payload.before_micro,
        payload.after_micro,
        payload.squares,
    )
    gated = replace(gated, scores=(*gated.scores, said))
    OPEN_GATES.put(view, gated, gated.run)
    if _is_ripe(view, gated, rule):
        _decide(view, gated, rule, height)


def _waiting(view: View, payload: Score | SealedScore) -> Gated:
    """Return the version that a validator speaks of."""
    gated = OPEN_GATES.get(view, payload.run)
    if gated is None or (gated.round, gated.model) != (payload.round, payload.model):
        raise Reject("no version of that round waits before the gate")
    return gated


def _is_ripe(view: View, gated: Gated, rule: Gate) -> bool:
    """True when enough was said, and nobody doubts the version."""
    is_quorum = len(gated.scores) >= quorum_of(rule)
    return is_quorum and not is_doubted(view, gated.run, gated.round)


def _look_at(view: Overlay, gated: Gated, height: int) -> None:
    """Decide a version, end its sealing, draw anew, or give up after a while."""
    rule, clock, record = _rule(view, gated), CLOCK.get(view), _run(view, gated)
    assert clock is not None
    if len(gated.scores) >= quorum_of(rule):
        if _is_ripe(view, gated, rule):
            _decide(view, gated, rule, height)
        return
    deadline_ms = record.run.deadline_ms
    since_ms = clock.time_ms - (gated.sealed_ms or gated.drawn_ms)
    if gated.round < record.closed - VERSIONS_KEPT:
        _close(view, gated, Stand.EXPIRED)
    elif gated.sealed_ms is None and len(gated.seals) >= quorum_of(rule):
        # Who is a little slower gets its chance: with it, one may fail to show.
        if len(gated.seals) == len(gated.drawn) or since_ms > deadline_ms:
            sealed = replace(gated, sealed_ms=clock.time_ms)
            OPEN_GATES.put(view, sealed, gated.run)
    elif since_ms > PATIENCE * deadline_ms:
        if gated.draws >= MAX_DRAWS:
            _close(view, gated, Stand.EXPIRED)
        elif gated.sealed_ms is None:
            _draw_more(view, gated, rule, clock)
        else:
            _draw_anew(view, gated, rule, clock)


def _draw_more(view: Overlay, gated: Gated, rule: Gate, clock: Clock) -> None:
    """Too few sealed: others measure the same, too."""
    taken = {*gated.drawn, *gated.withheld}
    more = _drawn(view, gated, rule, taken, gated.beacon)
    joined = tuple(sorted((*gated.drawn, *more)))[:MAX_VALIDATORS]
    again = replace(gated, drawn=joined, drawn_ms=clock.time_ms, draws=gated.draws + 1)
    OPEN_GATES.put(view, again, gated.run)


def _draw_anew(view: Overlay, gated: Gated, rule: Gate, clock: Clock) -> None:
    """Some did not show what they sealed: all begins anew without them.

    On other windows: what was shown is known now, and could be copied.
    """
    shown = {one.account for one in gated.scores}
    silent = {one.account for one in gated.seals} - shown
    withheld = tuple(sorted({*gated.withheld, *silent}))[:MAX_VALIDATORS]
    beacon = clock.beacons[-1]
    again = replace(
        gated,
        beacon=beacon,
        drawn=_drawn(view, gated, rule, withheld, beacon),
        drawn_ms=clock.time_ms,
        draws=gated.draws + 1,
        seals=(),
        sealed_ms=None,
        scores=(),
        withheld=withheld,
    )
    OPEN_GATES.put(view, again, gated.run)


def _drawn(
    view: View, gated: Gated, rule: Gate, taken: Collection[bytes], beacon: bytes
) -> tuple[bytes, ...]:
    place = beacon, gated.run, gated.round, gated.draws
    return committee(voters(view), taken, rule.validators, *place)


def _versions(view: View, gated: Gated) -> list[Version] | None:
    """Return the versions to adopt; None when others are adopted, or came meanwhile."""
    model = require_model(view, gated.model)
    versions = versions_of(view, gated.run, gated.round, model.groups)
    if versions is None or model.heads_root != gated.before:
        return None
    is_past = any(g.run != gated.run for g in GROUPS.scan(view, gated.model))
    root = heads_root([version.tiles for version in versions])
    return versions if root == gated.after and not is_past else None


def _decide(view: Overlay, gated: Gated, rule: Gate, height: int) -> None:
    """The median score decides; of two in the middle the worse one."""
    versions = _versions(view, gated)
    if versions is None:
        _close(view, gated, Stand.EXPIRED)
        return
    order = sorted(gated.scores, key=lambda one: (one.rise_micro, one.account))
    median = order[len(order) // 2]
    outliers = tuple(
        sorted(
            one.account
            for one in gated.scores
            if abs(one.rise_micro - median.rise_micro) > OUTLIER_MICRO
        )
    )
    told = replace(gated, median=median.account, outliers=outliers)
    if not passes(rule, median):
        _close(view, told, Stand.FAILED)
        return
    model = require_model(view, gated.model)
    move_heads(view, model, gated.run, gated.round, versions, height)
    _close(view, told, Stand.PASSED)


def _close(view: Overlay, gated: Gated, stand: Stand) -> None:
    OPEN_GATES.remove(view, gated.run)
    GATES.put(view, replace(gated, stand=stand), gated.run)
    _open_next(view, gated.run)  # a run that ended has its last round before it yet


def _run(view: View, gated: Gated) -> RunRecord:
    record = RUNS.get(view, gated.run)
    assert record is not None  # runs are never forgotten
    return record


def _rule(view: View, gated: Gated) -> Gate:
    rule = _run(view, gated).run.gate
    assert rule is not None  # only such runs open gates
    return rule
