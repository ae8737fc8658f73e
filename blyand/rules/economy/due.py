"""What must happen at a later chain time, found without a scan.

Strategy. A wheel of slots of one second: what is due goes into the slot in which, or
right after which, its time lies, under a running number. At the end of every checkpoint
the wheel turns up to the chain time, at most `MAX_STEPS` slots and tasks together; what
is left waits for the next checkpoint. Rules look at times, not at whether a task ran.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated

from blyan_proto.codec import U32, U64, Size, message
from blyan_proto.constants import MAX_CHECKPOINT_BLOCKS
from blyand.rules.table import Table
from blyand.rules.view import Overlay

SLOT_MS = 1_000
# Of one checkpoint, about 40 ms: no block is the cause of more than three tasks.
MAX_STEPS = 4 * MAX_CHECKPOINT_BLOCKS


class Task(enum.IntEnum):
    """What is to be done. `ending.py` says by whom."""

    KEY = 1  # forget the key of a payment
    ESCROW = 2  # give a reserve back, or forget a closed one
    STAKE = 3  # an unlocked stake may be spent


@message
class Due:
    """One thing to do."""

    task: Task
    key: Annotated[bytes, Size(0, 64)]  # of the record that it is about
    micro: U64


@message
class Slot:
    """How many tasks a second has, and how many of them are done."""

    added: U32
    done: U32


@message
class Wheel:
    """The slot to look at next, and how many tasks there are. No record: none."""

    slot: U64
    waiting: U64


DUES = Table(b"due", Due)  # slot, number
SLOTS = Table(b"slot", Slot)  # slot
WHEEL = Table(b"wheel", Wheel)  # one record


def schedule(view: Overlay, now_ms: int, at_ms: int, due: Due) -> None:
    """Let something be done by the first checkpoint whose time is not before `at_ms`."""
    wheel = WHEEL.get(view) or Wheel(now_ms // SLOT_MS, 0)
    slot = max(-(-at_ms // SLOT_MS), wheel.slot)
    known = SLOTS.get(view, slot) or Slot(0, 0)
    DUES.put(view, due, slot, known.added)
    SLOTS.put(view, replace(known, added=known.added + 1), slot)
    WHEEL.put(view, replace(wheel, waiting=wheel.waiting + 1))


def turn(view: Overlay, now_ms: int, do: Callable[[Due], None]) -> None:
    """Do what is due at `now_ms`, in the order in which it was scheduled."""
    for _ in range(MAX_STEPS):
        wheel = WHEEL.get(view)
        if wheel is None or wheel.slot * SLOT_MS > now_ms:
            return
        slot = SLOTS.get(view, wheel.slot)
        if slot is None:
            WHEEL.put(view, replace(wheel, slot=wheel.slot + 1))
            continue
        due = DUES.get(view, wheel.slot, slot.done)
        assert due is not None
        DUES.remove(view, wheel.slot, slot.done)
        if slot.done + 1 == slot.added:
            SLOTS.remove(view, wheel.slot)
        else:
            SLOTS.put(view, replace(slot, done=slot.done + 1), wheel.slot)
        if wheel.waiting == 1:
            WHEEL.remove(view)
        else:
            WHEEL.put(view, replace(wheel, waiting=wheel.waiting - 1))
        do(due)
