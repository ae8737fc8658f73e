"""A group moves by one round: what a tile update must say to take effect (DEC-B5, B6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from blyan_proto.block.block import Block
from blyan_proto.block.model import Run, Snapshot, TileUpdate
from blyan_proto.constants import PPM
from blyan_proto.types import Role, members
from blyand.rules.model import clip, compaction, standing
from blyand.rules.model.election import contributors, ranks
from blyand.rules.model.run import count_update
from blyand.rules.model.schedule import next_round
from blyand.rules.model.signatures import accounts_of, check_cosignatures, needed
from blyand.rules.records import (
    CLOCK,
    GROUPS,
    RUNS,
    SCHEDULES,
    VERSIONS,
    Group,
    Node,
    RunRecord,
    Schedule,
    Version,
)
from blyand.rules.verdict import Reject
from blyand.rules.view import Overlay, View


def apply(view: Overlay, block: Block, update: TileUpdate, liveness_ms: int) -> None:
    """Execute a tile update: move the group's trained head."""
    group = require_group(view, update.model, update.group)
    record, schedule = open_round(view, update.run, update.round)
    author = block.header.author
    if record.run.model != update.model:
        raise Reject("the run is of another model")
    check_lineage(update, group)
    check_author(update, schedule, author)
    before = group.median if group.run == update.run else 0
    check_contributions(update, schedule, record)
    check_clip(update, record.run, before)
    check_tokens(update, record.run)
    check_cosignatures(update, schedule, block.header.network)
    signed = len(update.cosignatures)
    if signed < needed(view, schedule, group, record.run, author, liveness_ms):
        raise Reject("another rank of the group is alive and has not signed")
    clock = CLOCK.get(view)
    assert clock is not None
    counted = count_update(view, record, update.round)
    GROUPS.put(
        view,
        replace(
            group,
            head=block.id,
            run=counted.id,
            rounds=update.round + 1,
            tiles=update.result,
            moved_ms=clock.time_ms,
            median=update.median,
            updates=group.updates + 1,
            delta_bytes=group.delta_bytes + compaction.listed_bytes(update),
        ),
        update.model,
        update.group,
    )
    version = Version(
        update=block.id,
        tiles=update.result,
        parent=update.parent,
        base=update.base,
        signers=tuple(accounts_of(update, schedule)),
        is_single=signed < 2,
        median=before,
        learners=_learners(update) if update.group == 0 else (),
        delta_bytes=compaction.listed_bytes(update),
    )
    VERSIONS.put(view, version, update.run, update.round, update.group)


def require_group(view: View, model: bytes, index: int) -> Group:
    """Return a group's record or Reject."""
    group = GROUPS.get(view, model, index)
    if group is None:
        raise Reject(f"unknown group {index}")
    return group


def open_round(view: View, run: bytes, round: int) -> tuple[RunRecord, Schedule]:
    """Return the run and the schedule of a round that may be trained now, or Reject."""
    record = RUNS.get(view, run)
    if record is None or record.finished:
        raise Reject("no such open run")
    schedule = SCHEDULES.get(view, run, round)
    if schedule is None or round < record.closed:
        raise Reject(f"round {round} is not open")
    return record, schedule


def check_lineage(update: TileUpdate, group: Group) -> None:
    """The update continues exactly the group's head."""
    if update.parent != group.head or update.base != group.tiles:
        raise Reject("the update does not continue the group's head")
    if update.round != next_round(group, update.run):
        raise Reject(f"the group's next round is {next_round(group, update.run)}")
    if not update.contributions and update.result != update.base:
        raise Reject("an update without contributions changes nothing")


def check_author(update: TileUpdate, schedule: Schedule, author: bytes) -> None:
    """The author is the rank that it claims, under the schedule's lease."""
    if update.lease_epoch != schedule.epoch:
        raise Reject(
            f"lease epoch {update.lease_epoch}, the round has {schedule.epoch}"
        )
    seats = ranks(schedule, update.group)
    if update.rank >= len(seats) or seats[update.rank].key != author:
        raise Reject(f"the author is not rank {update.rank} of the group")


def check_contributions(
    update: TileUpdate, schedule: Schedule, record: RunRecord
) -> None:
    """Contributions are of the round's learners, in order, and weighed by the rule."""
    learners = _learners(update)
    if len(set(learners)) != len(learners):
        raise Reject("two contributions of one learner")
    seats = {
        seat.account: seat for seat in contributors(schedule, update.group, Role.LEARN)
    }
    if not set(learners) <= seats.keys():
        raise Reject("a contribution of somebody who is no learner of the group")
    weights = contribution_weights(
        [part.tokens for part in update.contributions],
        [seats[learner].is_new for learner in learners],
        record.newcomer_share_ppm,
    )
    if weights != [part.weight_ppm for part in update.contributions]:
        raise Reject("a contribution's weight is not the rule's")


def check_clip(update: TileUpdate, run: Run, median: int) -> None:
    """Clip factors and the running median follow from the norms (DEC-B15).

    `median`: the group's in this run before the update. That the norms are the deltas'
    own is for holders to find.
    """
    norms = [part.norm for part in update.contributions]
    most_ppm = run.delta_clip_ppm
    if not most_ppm and any(norms):
        raise Reject("a norm in a run that does not clip")
    if any(clip.is_absurd(norm, median) for norm in norms):
        raise Reject("a contribution of an absurd norm")
    factors = clip.factors(norms, median, most_ppm)
    if factors != [part.clip_ppm for part in update.contributions]:
        raise Reject("a contribution's clip is not the rule's")
    if update.median != clip.running_after(norms, median, most_ppm):
        raise Reject("the running median is not the rule's")


def _learners(update: TileUpdate) -> tuple[bytes, ...]:
    return tuple(part.learner for part in update.contributions)


def check_tokens(update: TileUpdate, run: Run) -> None:
    """Nobody learned from more tokens than a round assigns (DEC-B10)."""
    if any(part.tokens > assigned_tokens(run) for part in update.contributions):
        raise Reject("a contribution counts more tokens than were assigned")


def assigned_tokens(run: Run) -> int:
    """Return how many tokens a learner learns from in one round."""
    return run.inner_steps * run.batch * run.sequence


def contribution_weights(
    tokens: Sequence[int], new: Sequence[bool] = (), share_ppm: int = PPM
) -> list[int]:
    """Return each contribution's weight in ppm: its tokens, at most twice the median.

    DEC-B10: weight = tokens of the assigned batches, capped at 2 x the (lower) median;
    those of learners that are `new` add up to at most `share_ppm`. The weights need not
    sum to 10^6; the sum is divided by their total (DEC-B1).
    """
    if not tokens:
        return []
    cap = 2 * sorted(tokens)[(len(tokens) - 1) // 2]
    capped = [min(count, cap) for count in tokens] if cap else [1] * len(tokens)
    if any(new):
        capped = standing.shared(capped, new, share_ppm)
    total = sum(capped)
    return [max(1, count * PPM // total) for count in capped]


def keep_snapshot(view: Overlay, payload: Snapshot) -> None:
    """Execute a snapshot block: this version of the group is kept durable (DEC-B3).

    Updates that were ordered before it and made later versions stand on it (COMPACT-05).
    """
    group = require_group(view, payload.model, payload.group)
    if group.run is None:
        raise Reject("the group has not been trained")
    version = VERSIONS.get(view, group.run, payload.round, payload.group)
    if version is None or version.update != payload.update:
        raise Reject("the snapshot names no recent version of the group")
    if version.tiles != payload.tiles:
        raise Reject("the snapshot's roots are not the version's")
    later = (
        VERSIONS.get(view, group.run, round, payload.group)
        for round in range(payload.round, group.rounds)
    )
    if any(known is not None and known.update == group.snapshot for known in later):
        raise Reject("this version or a later one is the group's snapshot already")
    updates, listed = compaction.after(view, group, payload.round)
    superseded = group.updates - updates, group.delta_bytes - listed
    compaction.check_need(view, group, *superseded)
    GROUPS.put(
        view,
        replace(
            group,
            snapshot=payload.update,
            earlier_snapshot=group.snapshot,
            updates=updates,
            delta_bytes=listed,
        ),
        payload.model,
        payload.group,
    )


def held_by(node: Node) -> frozenset[int]:
    """Return the groups that a node's last heartbeat says it holds."""
    return members(node.held)
