"""Who signed a tile update, and whether that is enough to order it (DEC-A5).

A rank signs after it recomputed. Of a group's ranks (its first three seated holders)
the author and one more have to sign, as long as a second one is alive by state.
"""

from __future__ import annotations

from collections.abc import Sequence

from blyan_proto.block.block import Block
from blyan_proto.block.model import Run, TileUpdate
from blyan_proto.errors import BadSignature
from blyan_proto.signing import Purpose, check_signature
from blyand.rules.model.election import ranks
from blyand.rules.model.schedule import is_live, next_round
from blyand.rules.records import (
    CLOCK,
    GROUPS,
    NODES,
    RUNS,
    SCHEDULES,
    Group,
    Schedule,
    Seat,
)
from blyand.rules.verdict import Reject
from blyand.rules.view import View

ENOUGH = 2  # signatures, where so many ranks are alive
PATIENCE = 4  # deadlines of the run; then a rank that lives and does not sign is gone


def check_cosignatures(update: TileUpdate, schedule: Schedule, network: bytes) -> None:
    """Every cosignature is a rank's, over the update's claim; the first is the author's."""
    keys = [seat.key for seat in ranks(schedule, update.group)]
    signers = [cosignature.signer for cosignature in update.cosignatures]
    if len(set(signers)) != len(signers) or not set(signers) <= set(keys):
        raise Reject("a cosignature of somebody who is no rank of the group")
    if signers[0] != keys[update.rank]:
        raise Reject("the author's cosignature does not come first")
    claim = update.claim
    for cosignature in update.cosignatures:
        try:
            check_signature(
                Purpose.TILE_UPDATE,
                network,
                claim,
                cosignature.signer,
                cosignature.signature,
            )
        except BadSignature as error:
            raise Reject(f"cosignature: {error}") from error


def needed(
    view: View,
    schedule: Schedule,
    group: Group,
    run: Run,
    author: bytes,
    liveness_ms: int,
) -> int:
    """Return how many signatures an update by `author` (a key) needs now: 1 or 2.

    min(2, live ranks): the author lives; another does while its last heartbeat is
    young. After PATIENCE deadlines without a move one signature does: a rank that only
    pretends to live must not stop the run.
    """
    clock = CLOCK.get(view)
    assert clock is not None
    waited_ms = clock.time_ms - max(schedule.opened_ms, group.moved_ms)
    if waited_ms > PATIENCE * run.deadline_ms:
        return 1
    others = [seat for seat in ranks(schedule, group.group) if seat.key != author]
    is_alone = not any(_lives(view, s, clock.time_ms, liveness_ms) for s in others)
    return 1 if is_alone else ENOUGH


def _lives(view: View, seat: Seat, now_ms: int, liveness_ms: int) -> bool:
    node = NODES.get(view, seat.account)
    return node is not None and is_live(node, now_ms, liveness_ms)


def has_enough(view: View, block: Block, liveness_ms: int) -> bool:
    """True when a block may be ordered by its signatures; false only of tile updates.

    Of what cannot count, as its round is unknown here or over, nothing is asked:
    execution makes nothing of it, and what its author made later waits no longer.
    """
    update = block.content
    if not isinstance(update, TileUpdate):
        return True
    if is_enough(view, update, block.header.author, liveness_ms):
        return True
    schedule = SCHEDULES.get(view, update.run, update.round)
    group = GROUPS.get(view, update.model, update.group)
    if schedule is None or group is None:
        return True
    return update.round < next_round(group, update.run)


def is_enough(view: View, update: TileUpdate, author: bytes, liveness_ms: int) -> bool:
    """True when an update by `author` (a key) counts with the signatures that it has.

    One counts only on the group's finalised head, as the wait is measured there.
    """
    if len(update.cosignatures) >= ENOUGH:
        return True
    record = RUNS.get(view, update.run)
    schedule = SCHEDULES.get(view, update.run, update.round)
    group = GROUPS.get(view, update.model, update.group)
    if record is None or schedule is None or group is None:
        return False
    if needed(view, schedule, group, record.run, author, liveness_ms) < ENOUGH:
        return group.head == update.parent or len(ranks(schedule, update.group)) < 2
    return False


def accounts_of(update: TileUpdate, schedule: Schedule) -> Sequence[bytes]:
    """Return the accounts that signed, the author first; they were checked to be ranks."""
    seats = {seat.key: seat.account for seat in ranks(schedule, update.group)}
    return [seats[cosignature.signer] for cosignature in update.cosignatures]
