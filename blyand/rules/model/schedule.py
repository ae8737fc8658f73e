"""Writing a round's schedule: what ranks, learner set and batches are read from."""

from __future__ import annotations

from blyand.rules.records import CLOCK, NODES, SCHEDULES, RunRecord, Schedule, Seat
from blyand.rules.view import Overlay, View

FULL_WEIGHT = 64


def live_seats(view: View, model: bytes, liveness_ms: int) -> tuple[Seat, ...]:
    """Return the nodes alive at the view's median time that follow `model` (DEC-A8)."""
    clock = CLOCK.get(view)
    assert clock is not None
    revealed = clock.height - 2  # the beacon in use is of that checkpoint (DEC-A7)
    return tuple(
        Seat(node.account, node.key, node.roles, FULL_WEIGHT, node.held)
        for node in NODES.scan(view)
        if node.model == model
        and clock.time_ms - node.heartbeat_ms <= liveness_ms
        and node.registered_height < max(revealed, 1)
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
    )
    SCHEDULES.put(view, schedule, record.id, round)
