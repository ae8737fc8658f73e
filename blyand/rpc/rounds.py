"""Following a run: one report per closed round, in order, each once."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field, replace

import trio

from blyan_proto.errors import ProtocolError
from blyan_proto.rpc import train as spec
from blyan_tile.baselines import baselines
from blyand.compute import Threads
from blyand.errors import Unavailable
from blyand.rpc.reports import before_first, finite, names_of, report_of
from blyand.rules.records import GROUPS, RUNS, RunRecord
from blyand.rules.view import View
from blyand.store.rounds import Report
from blyand.training.journal import Journal

LIVE_S = 0.2  # between two looks at the round under way
LOOK_S = 0.5  # what the journal does not tell of is looked at this often
BEFORE_S = 20.0  # for the judgement before the first round
SETTLE_S = 2.0  # for the journal to close the last round of a finished run
JUDGED_S = 120.0  # for the judgement of the last round
ADOPTED_S = (
    10.0  # for the adoption of the last round, so that inference answers with it
)


@dataclass(frozen=True)
class Watching:
    """What is looked at."""

    view: Callable[[], View]
    journal: Journal
    lane: Threads
    peers: Callable[[], int]  # connected now
    is_paused: Callable[[], bool]  # learning is stopped on this node
    doing: Callable[[], str] = lambda: ""  # in training, in a sentence
    moved: Callable[[], tuple[int, int]] = lambda: (
        0,
        0,
    )  # bytes within, between regions
    known: dict[bytes, spec.Baselines | None] = field(default_factory=dict)


Emit = Callable[[spec.RoundReport], Awaitable[None]]


async def follow(
    watching: Watching, run: bytes, emit: Emit, live: bool = False
) -> spec.Watched:
    """Emit the state before the run, then every round, until the run has ended.

    With `live` also the round under way, whenever something of it changed.

    It also ends when this node stops learning meanwhile. A round waits for its held-out
    loss only while that is still to come.
    """
    journal, began = watching.journal, trio.current_time()
    learnt = not watching.is_paused()
    await emit(await _first(watching, _record(watching, run)))
    shown, ended, outcome = 0, math.inf, "finished"
    last: spec.RoundReport | None = None
    while True:
        record, now = _record(watching, run), trio.current_time()
        if record.finished:
            ended = min(ended, now)
        judging = bool(record.closed) and journal.awaits(record, record.closed - 1)
        patience_s = JUDGED_S if judging else SETTLE_S
        is_late = now - ended > patience_s
        due = due_reports(journal, record, shown, wait=not is_late)
        for report in due:
            names = names_of(watching.view(), record)
            await emit(report_of(names, report, watching.peers()))
            shown = report.round + 1
        if due:
            continue
        if record.finished and (shown >= record.closed or is_late):
            if _is_adopted(watching.view(), record) or now - ended > ADOPTED_S:
                break
        if learnt and watching.is_paused():
            outcome = "stopped"
            break
        if live and not record.finished:
            now_known = _under_way(watching, record)
            if now_known != last:
                await emit(now_known)
                last = now_known
                await trio.sleep(LIVE_S)
                continue
        with trio.move_on_after(LOOK_S):
            await journal.changed()
    reports = journal.reports(run)
    losses = [r.held_out_loss for r in reports if r.held_out_loss is not None]
    return spec.Watched(
        run=run,
        outcome=outcome,
        round=record.closed,
        rounds=record.run.rounds,
        tokens=sum(report.tokens for report in reports),
        first_held_out_loss=journal.before(run),
        held_out_loss=losses[-1] if losses else None,
        seconds=trio.current_time() - began,
    )


def due_reports(
    journal: Journal, record: RunRecord, shown: int, wait: bool
) -> list[Report]:
    """Return the closed rounds after the first `shown` that may be shown now, in order.

    With `wait`, none from the first one on whose held-out loss is still to come.
    """
    due = []
    for report in journal.reports(record.id):
        if report.round < shown:
            continue
        if wait and report.held_out_loss is None:
            if journal.awaits(record, report.round):
                break
        due.append(report)
    return due


async def _first(watching: Watching, record: RunRecord) -> spec.RoundReport:
    """Return round 0: what simple models reach, and the loss before the first round."""
    journal = watching.journal
    simple = await baselines_of(watching, record)
    with trio.move_on_after(BEFORE_S):
        while journal.awaits(_record(watching, record.id), None):
            await journal.changed()
    blank = before_first(record.id, record.run.rounds, watching.peers())
    loss = finite(journal.before(record.id))
    return replace(blank, baselines=simple, held_out_loss=loss)


def _under_way(watching: Watching, record: RunRecord) -> spec.RoundReport:
    """Return what is known of the round that this node is at."""
    step = watching.journal.step_now
    rounds, doing = record.run.rounds, watching.doing()
    within, between = watching.moved()
    blank = before_first(record.id, rounds, watching.peers())
    if step is not None:
        doing = f"training, {step.note}"
    return replace(
        blank,
        round=min(rounds, (step.round if step else record.closed) + 1),
        under_way=spec.UnderWay(
            doing=doing,
            step=step.done if step else None,
            steps=step.total if step else None,
            within_bytes=within,
            between_bytes=between,
        ),
    )


async def baselines_of(watching: Watching, record: RunRecord) -> spec.Baselines | None:
    """Return the baselines of a run's dataset; None where they cannot be told.

    They are of one dataset: of a run with several there are none.
    """
    if len(record.run.datasets) != 1:
        return None
    dataset = record.run.datasets[0]
    if dataset not in watching.known:
        try:
            (archive,) = await watching.journal.archives(record)
        except (Unavailable, ProtocolError):
            return None
        found = asdict(await watching.lane.run(baselines, archive))
        whole = all(math.isfinite(value) for value in found.values())
        watching.known[dataset] = spec.Baselines(**found) if whole else None
    return watching.known[dataset]


def _is_adopted(view: View, record: RunRecord) -> bool:
    """True when inference answers with what the run made, or with something newer."""
    groups = GROUPS.scan(view, record.run.model)
    return all(g.run != record.id or g.adopted == g.tiles for g in groups)


def _record(watching: Watching, run: bytes) -> RunRecord:
    record = RUNS.get(watching.view(), run)
    if record is None:
        raise Unavailable("the run is no longer in the state; it is executed again")
    return record
