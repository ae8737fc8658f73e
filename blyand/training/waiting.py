"""Updates that no checkpoint ordered yet: what provisional heads are made of (DEC-A6).

Bounded for each group. An update that checkpoints pass over again and again no longer
counts here: its primary may have made one that can never be ordered.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import trio

from blyan_proto.block.block import Block
from blyan_proto.block.model import TileUpdate
from blyand.rules.model import signatures
from blyand.rules.model import update as rules
from blyand.rules.records import CLOCK, RUNS, SCHEDULES, Clock
from blyand.rules.verdict import Reject
from blyand.rules.view import View
from blyand.training.trails import Key

logger = logging.getLogger(__name__)

MAX_WAITING = 64  # updates of one group
EXCUSED_S = 600.0  # longest that an anchor ahead of us excuses an update: it may lie
PASSED_OVER = 16  # checkpoints without an update, and a while: it is dead


@dataclass(frozen=True)
class Blocks:
    """What following updates needs of the chain."""

    view: Callable[[], View]
    get: Callable[[bytes], Block | None]
    pending: Callable[[], Iterator[Block]]
    is_pending: Callable[[bytes], bool]  # here, and no checkpoint has ordered it
    abandon: Callable[[bytes], None]  # no block of ours is to stand on this one


@dataclass
class _Waiting:
    block: Block
    since: Clock  # the chain's, when it was first seen, or as new as it is
    noted_s: float  # trio time
    is_refused: bool = False


class Waiting:
    """The pending updates of each group."""

    def __init__(self, blocks: Blocks, liveness_ms: int) -> None:
        self._blocks = blocks
        self._liveness_ms = liveness_ms
        self._known: dict[Key, dict[bytes, _Waiting]] = {}

    def note(self, block: Block) -> bool:
        """Remember an update; False when it is known or can never count."""
        update: TileUpdate = block.content
        known = self._known.setdefault((update.model, update.group), {})
        if block.id in known or not self._can_count(block, update):
            return False
        known[block.id] = _Waiting(block, self._clock(), trio.current_time())
        if len(known) > MAX_WAITING:
            del known[next(iter(known))]
        return True

    def any(self, key: Key) -> bool:
        """True when some update of a group waits."""
        return bool(self._known.get(key))

    def after(self, key: Key, head: bytes) -> list[Block]:
        """Return the updates that may follow the block `head`, the best first."""
        found = [
            one.block
            for one in self._known.get(key, {}).values()
            if one.block.content.parent == head and not one.is_refused
        ]
        return sorted(found, key=lambda block: (block.content.rank, block.id))

    def counts(self, key: Key, block: bytes) -> bool:
        """True while a provisional head may stand on this update."""
        one = self._known.get(key, {}).get(block)
        is_refused = one is not None and one.is_refused
        return self._blocks.is_pending(block) and not is_refused

    def refuse(self, key: Key, block: bytes) -> None:
        """Never offer this update again."""
        one = self._known.get(key, {}).get(block)
        if one is not None:
            one.is_refused = True

    def sweep(self, key: Key) -> None:
        """Forget what a checkpoint ordered, or that expired; refuse what is dead."""
        known = self._known.get(key, {})
        for block in [one for one in known if not self._blocks.is_pending(one)]:
            del known[block]
        dead = {
            id
            for id, one in known.items()
            if not one.is_refused and self._is_passed_over(one)
        }
        if dead:
            self._give_up(known, dead)

    def _give_up(self, known: dict[bytes, _Waiting], dead: set[bytes]) -> None:
        """Refuse updates, and those that stand on them: none will be ordered."""
        for id, one in known.items():
            if one.block.content.parent in dead:  # noted later than its parent
                dead.add(id)
        for id in dead:
            logger.warning("update %s is never ordered: given up", id.hex()[:16])
            known[id].is_refused = True
            self._blocks.abandon(id)

    def forget(self, key: Key) -> None:
        """Let go of a group."""
        self._known.pop(key, None)

    def _can_count(self, block: Block, update: TileUpdate) -> bool:
        schedule = SCHEDULES.get(self._blocks.view(), update.run, update.round)
        if schedule is None or update.lease_epoch > schedule.epoch:
            return True  # of a checkpoint that this node has not executed
        try:
            rules.check_author(update, schedule, block.header.author)
        except Reject as error:
            logger.info("update %s: %s", block.id.hex()[:16], error)
            return False
        return True

    def _is_passed_over(self, one: _Waiting) -> bool:
        clock = self._clock()
        if clock.height < one.block.header.anchor_height:
            # We are behind: the checkpoints that we execute are older than the update.
            if trio.current_time() - one.noted_s < EXCUSED_S:
                one.since = clock
        if clock.height - one.since.height < PASSED_OVER:
            return False
        record = RUNS.get(self._blocks.view(), one.block.content.run)
        # What a dead holder has not receipted waits until state knows that it is dead.
        waited_ms = clock.time_ms - one.since.time_ms - self._liveness_ms
        # A rank that came back takes from one signature what was enough without it.
        is_single = len(one.block.content.cosignatures) < signatures.ENOUGH
        deadlines = signatures.PATIENCE if is_single else 1
        return record is None or waited_ms > deadlines * record.run.deadline_ms

    def _clock(self) -> Clock:
        clock = CLOCK.get(self._blocks.view())
        assert clock is not None
        return clock
