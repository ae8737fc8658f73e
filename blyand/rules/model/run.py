"""A training run begins, counts its rounds, and ends (DEC-B7)."""

from __future__ import annotations

from dataclasses import replace

from blyan_proto.block import sending
from blyan_proto.block.block import Block
from blyan_proto.block.model import Run
from blyan_proto.constants import MAX_CONTRIBUTIONS, MAX_TRAINED_TILES, PPM
from blyand.rules.model.clip import ABSURD
from blyand.rules.model.dispute import open_disputes
from blyand.rules.model.model import layout_for, require_model
from blyand.rules.model.places import finish, note_move, open_runs, take_place
from blyand.rules.model.schedule import stuck_rounds, write_schedule
from blyand.rules.records import (
    CLOCK,
    DATASETS,
    MODELS,
    NODES,
    RUNS,
    SCHEDULES,
    VERSIONS,
    VERSIONS_KEPT,
    RunRecord,
)
from blyand.rules.verdict import Reject
from blyand.rules.view import Overlay, View


def start(
    view: Overlay,
    block: Block,
    run: Run,
    liveness_ms: int,
    idle_ms: int,
    newcomer_share_ppm: int,
) -> None:
    """Execute a run block: check the numbers, open the run, schedule its first rounds."""
    if NODES.get(view, block.header.account) is None:
        raise Reject("only a registered node opens a run")
    record = require_model(view, run.model)
    if record.run is not None:
        raise Reject(f"the model has an open run {record.run.hex()[:16]}")
    if record.heads_root is None:
        raise Reject("the model's first weights are not complete")
    for dataset in run.datasets:
        known = DATASETS.get(view, dataset)
        if known is None:
            raise Reject(f"unknown dataset {dataset.hex()[:16]}")
        if known.dataset.held_out_ppm != run.held_out_ppm:
            raise Reject("the run holds out another share than its datasets")
    if run.sequence > record.model.architecture.context:
        raise Reject("sequences are longer than the model's context")
    check_numbers(run)
    if any(len(g.tiles) > MAX_TRAINED_TILES for g in layout_for(record.model).groups):
        raise Reject(f"a group of the model has more than {MAX_TRAINED_TILES} tiles")
    if sum(1 for _ in NODES.scan(view)) > MAX_CONTRIBUTIONS:
        raise Reject(
            "more learners than an update can list; re-compression is not built"
        )
    opened = RunRecord(
        id=block.id,
        run=run,
        author=block.header.account,
        closed=0,
        counts=(),
        finished=False,
        newcomer_share_ppm=newcomer_share_ppm,
    )
    take_place(view, opened, _now_ms(view), idle_ms)
    MODELS.put(view, replace(record, run=block.id), record.id)
    for round in range(min(run.rounds_ahead + 1, run.rounds)):
        write_schedule(view, opened, round, liveness_ms)


def check_numbers(run: Run) -> None:
    """Reject a run whose numbers no state could make good."""
    if not 1 <= run.rounds <= 1_000_000:
        raise Reject("a run has 1 to 1,000,000 rounds")
    if not run.inner_steps or not run.batch or not 2 <= run.sequence <= 65_535:
        raise Reject("a run needs inner steps, a batch and a sequence of 2 or more")
    if run.held_out_ppm > PPM // 2 or run.quorum_ppm > PPM:
        raise Reject("a share is above its bound")
    if run.outer_momentum_ppm >= PPM or run.feedback_ppm > PPM:
        raise Reject("momentum is below 1 and error feedback at most 1")
    if run.rotation:
        raise Reject("rotation of held experts is not in this version")
    if run.delta_clip_ppm and not PPM <= run.delta_clip_ppm <= ABSURD * PPM:
        raise Reject(f"deltas are clipped to 1 to {ABSURD} times the running median")
    if run.first_checkpoint:
        raise Reject("a run starts at the checkpoint that orders it in this version")
    if not 1 <= run.rounds_ahead <= 8:
        raise Reject("a run goes 1 to 8 rounds ahead of finality")
    if run.beta1_ppm >= PPM or run.beta2_ppm >= PPM:
        raise Reject("betas are below 1")
    starts = [step.from_round for step in run.inner_rate]
    if starts[0] or any(left >= right for left, right in zip(starts, starts[1:])):
        raise Reject("inner rates begin at round 0 and ascend")
    for choice in run.codecs:
        try:
            sending.check(choice.codec, choice.setting)
        except ValueError as error:
            raise Reject(str(error)) from error


def count_update(view: Overlay, record: RunRecord, round: int) -> RunRecord:
    """Count one group's update of `round`; return the run's record as it now stands."""
    counts = list(record.counts)
    place = round - record.closed
    counts += [0] * (place + 1 - len(counts))
    counts[place] += 1
    counted = replace(record, counts=tuple(counts))
    RUNS.put(view, counted, record.id)
    note_move(view, counted, _now_ms(view))
    return counted


def close_rounds(view: Overlay, liveness_ms: int) -> None:
    """At the end of a checkpoint: close whole rounds, schedule the ones that may follow."""
    still_open = list(open_runs(view))
    if still_open:  # one a checkpoint: it goes through all nodes and groups
        clock = CLOCK.get(view)
        assert clock is not None
        turn = clock.height % len(still_open)
        still_open[turn] = _reschedule(view, still_open[turn], liveness_ms)
    for record in still_open:
        groups = require_model(view, record.run.model).groups
        counts, closed = list(record.counts), record.closed
        while counts and counts[0] == groups:
            counts.pop(0)
            _forget(view, record, closed)
            closed += 1
            ahead = closed + record.run.rounds_ahead
            if ahead < record.run.rounds:
                write_schedule(view, record, ahead, liveness_ms)
        if closed == record.closed:
            continue
        record = replace(record, counts=tuple(counts), closed=closed)
        RUNS.put(view, record, record.id)
        if closed >= record.run.rounds:
            finish(view, record)


def _reschedule(view: Overlay, record: RunRecord, liveness_ms: int) -> RunRecord:
    """Schedule anew, under a new lease epoch, rounds that nobody alive can move (DEC-A6).

    Only after a liveness span: when the chain stood still, nodes beat again one by one.
    """
    now_ms = _now_ms(view)
    rounds = stuck_rounds(view, record, liveness_ms)
    since = (record.stuck_ms or now_ms) if rounds else 0
    if rounds and now_ms - since > liveness_ms:
        for round in rounds:
            write_schedule(view, record, round, liveness_ms)
        since = 0
    if since == record.stuck_ms:
        return record
    record = replace(record, stuck_ms=since)
    RUNS.put(view, record, record.id)
    return record


def _now_ms(view: View) -> int:
    clock = CLOCK.get(view)
    assert clock is not None
    return clock.time_ms


def _forget(view: Overlay, record: RunRecord, closed: int) -> None:
    """Drop what is behind the window that adoption and joiners may still ask about.

    Not of a group whose update is disputed: closing the dispute does that.
    """
    old = closed - VERSIONS_KEPT
    if old < 0:
        return
    SCHEDULES.remove(view, record.id, old)
    disputed = {one.group for one in open_disputes(view) if one.run == record.id}
    for group in range(require_model(view, record.run.model).groups):
        if group not in disputed:
            VERSIONS.remove(view, record.id, old, group)


def is_adoptable(run: Run, round: int) -> bool:
    """True when the heads of `round` are to be adopted (DEC-B8)."""
    last = round + 1 == run.rounds
    return last or bool(run.adopt_every and (round + 1) % run.adopt_every == 0)


def newest_adoptable(run: Run, closed: int) -> int | None:
    """Return the newest of `closed` rounds whose heads are to be adopted, if any."""
    if closed >= run.rounds:
        return run.rounds - 1
    every = run.adopt_every
    return closed // every * every - 1 if every and closed >= every else None
