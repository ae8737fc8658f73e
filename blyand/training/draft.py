"""Whether an update may follow a version that is held here: all but signatures and result."""

from __future__ import annotations

from blyan_proto.block.model import TileUpdate
from blyand.rules.model import update as rules
from blyand.rules.records import SCHEDULES, Schedule
from blyand.rules.verdict import Ignore, Reject
from blyand.rules.view import View
from blyand.training.trails import Version


def check_draft(
    view: View, update: TileUpdate, author: bytes, head: Version
) -> Schedule:
    """Return the schedule of the update's round. `author`: the key of who made it.

    Reject when executing it on `head` would have no effect, Ignore when the state that
    this node executed cannot say so yet.
    """
    known = SCHEDULES.get(view, update.run, update.round)
    if known is None or update.lease_epoch > known.epoch:
        raise Ignore("its round is not open in the state that this node executed")
    record, schedule = rules.open_round(view, update.run, update.round)
    expected = head.rounds if head.run == update.run else 0
    if record.run.model != update.model:
        raise Reject("the run is of another model")
    if update.base != head.tiles or update.round != expected:
        raise Reject("the update does not continue the group's head")
    rules.check_author(update, schedule, author)
    rules.check_contributions(update, schedule, record)
    rules.check_clip(update, record.run, head.median_in(update.run))
    rules.check_tokens(update, record.run)
    return schedule
