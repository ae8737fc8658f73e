"""Whether a block's blobs are there, before it is ordered (DEC-A4).

A validator either holds them, or believes min(2, holders) of the group that signed for
having fetched and checked them: by a receipt, or, as they recomputed the update from
them, by a cosignature. That goes for tile updates; the blobs of other blocks have no
holders yet.
"""

from __future__ import annotations

from collections.abc import Iterable

from blyan_proto.block.block import Block
from blyan_proto.block.model import TileUpdate
from blyan_proto.checkpoint import BlobReceipt
from blyand.rules.model.election import holds
from blyand.rules.records import SCHEDULES, Seat
from blyand.rules.view import View

ENOUGH = 2  # who vouch, where a group has so many holders


def holders(view: View, update: TileUpdate) -> dict[bytes, Seat]:
    """Return the seated holders of an update's group, by key; live ones by state (A8)."""
    schedule = SCHEDULES.get(view, update.run, update.round)
    if schedule is None:
        return {}
    return {seat.key: seat for seat in schedule.seats if holds(seat, update.group)}


def is_vouched_for(view: View, block: Block, receipts: Iterable[BlobReceipt]) -> bool:
    """True when enough holders of a tile update's group have its deltas.

    `receipts`: any, their signatures checked; so were the update's cosignatures.
    """
    update = block.content
    if not isinstance(update, TileUpdate):
        return False
    seated = holders(view, update)
    signed = {cosignature.signer for cosignature in update.cosignatures}
    signed |= {receipt.signer for receipt in receipts if receipt.block == block.id}
    least = min(ENOUGH, len(seated))
    return bool(seated) and len(signed & seated.keys()) >= least
