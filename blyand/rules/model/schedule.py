"""Writing a round's schedule: what ranks, learner set and batches are read from."""

from __future__ import annotations

from blyand.rules.economy.draw import draw_weight
from blyand.rules.model.election import holds, ranks
from blyand.rules.model.standing import is_new
from blyand.rules.records import (
    CLOCK,
    GROUPS,
    NODES,
    SCHEDULES,
    Group,
    Node,
    RunRecord,
    Schedule,
    Seat,
)
from blyand.rules.trust.slashing import is_banned
from blyand.rules.view import Overlay, View

FORGOTTEN = 8  # deadlines; after half of them a rank's signature alone would have done


def is_live(node: Node, now_ms: int, liveness_ms: int) -> bool:
    """True when a node's last heartbeat is young enough, in chain time (DEC-A8)."""
    return now_ms - node.heartbeat_ms <= liveness_ms


def live_seats(view: View, model: bytes, liveness_ms: int) -> tuple[Seat, ...]:
    """Return the nodes alive at the view's median time that follow `model` (DEC-A8)."""
    clock = CLOCK.get(view)
    assert clock is not None
    revealed = clock.height - 2  # the beacon in use is of that checkpoint (DEC-A7)
    return tuple(
        Seat(
            node.account,
            node.key,
            node.roles,
            draw_weight(view, node.account, clock.time_ms),
            node.held,
            is_new(node),
        )
        for node in NODES.scan(view)
        if node.model == model
        and is_live(node, clock.time_ms, liveness_ms)
        and node.registered_height < max(revealed, 1)
        and not is_banned(view, node.account)
    )


def write_schedule(
    view: Overlay, record: RunRecord, round: int, liveness_ms: int
) -> None:
    """Fix who takes part in `round`, from the state at the end of this checkpoint."""
    clock = CLOCK.get(view)
    assert clock is not None
    schedule = Schedule(
        run=record.id,
        round=round,
        epoch=clock.height,
        beacon=clock.beacons[0],
        seats=live_seats(view, record.run.model, liveness_ms),
        opened_ms=clock.time_ms,
    )
    SCHEDULES.put(view, schedule, record.id, round)


def next_round(group: Group, run: bytes) -> int:
    """Return the round that `group` trains next in `run`."""
    return group.rounds if group.run == run else 0


def stuck_rounds(view: View, record: RunRecord, liveness_ms: int) -> list[int]:
    """Return the open rounds in which no rank of some group can move it any more.

    None of them is alive, but a holder is: of a group that nobody alive holds another
    schedule cannot help. Or they live and have promised heads that came to nothing, one
    for each lease: then other groups went on, and stand still for FORGOTTEN deadlines.
    """
    live = {
        seat.account: seat for seat in live_seats(view, record.run.model, liveness_ms)
    }
    groups = list(GROUPS.scan(view, record.run.model))
    rounds = {group.group: next_round(group, record.id) for group in groups}
    stuck = set()
    for group in groups:
        round = rounds[group.group]
        schedule = SCHEDULES.get(view, record.id, round)
        if schedule is None:
            continue
        if any(seat.account in live for seat in ranks(schedule, group.group)):
            if round < max(rounds.values()) and _are_mute(view, record, schedule):
                stuck.add(round)
        elif any(holds(seat, group.group) for seat in live.values()):
            stuck.add(round)
    return sorted(stuck)


def _are_mute(view: View, record: RunRecord, schedule: Schedule) -> bool:
    """True when nothing of a run has moved for long, under the lease of a late group."""
    clock = CLOCK.get(view)
    assert clock is not None
    moved_ms = max(group.moved_ms for group in GROUPS.scan(view, record.run.model))
    waited_ms = clock.time_ms - max(schedule.opened_ms, moved_ms)
    return waited_ms > FORGOTTEN * record.run.deadline_ms
