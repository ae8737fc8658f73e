"""Adopting trained heads at the run's pace: the validator's automatic rule (DEC-B8).

Of runs without a gate; `scorer` is what validators do for the others.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from blyan_proto.block.model import Adoption
from blyan_proto.constants import FORMAT_VERSION
from blyand.errors import Unavailable
from blyand.events import Broadcast, CheckpointFinalised
from blyand.rules.model.adoption import versions_of
from blyand.rules.model.dispute import is_doubted
from blyand.rules.model.model import heads_root
from blyand.rules.model.run import newest_adoptable
from blyand.rules.records import GROUPS, MODELS, RUNS, RunRecord
from blyand.rules.verdict import Ignore
from blyand.rules.view import View

logger = logging.getLogger(__name__)


PATIENCE = 4  # checkpoints in which a validator whose turn it is may adopt


class Adopter:
    """Makes adoption blocks. Runs on validators only; one of them adopts at a time."""

    def __init__(
        self,
        view: Callable[[], View],
        make: Callable[..., Awaitable[object]],
        events: Broadcast,
        turn: Callable[[View, int], int | None] = lambda view, height: 0,
    ) -> None:
        """`turn`: how many others come before this node for what fell due at a height."""
        self._turn = turn
        self._due: dict[tuple[bytes, int], int] = {}  # (run, round) -> height
        self._view = view
        self._make = make
        self._events = events
        self._adopted: dict[bytes, int] = {}  # run -> newest round adopted by us

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Adopt each adoptable round once it is closed."""
        with self._events.subscribe(CheckpointFinalised) as facts:
            task_status.started()
            async for fact in facts:
                height = fact.final.checkpoint.height
                for record in list(RUNS.scan(self._view())):
                    await self._adopt(record, height)

    async def _adopt(self, record: RunRecord, height: int) -> None:
        view = self._view()
        if record.run.gate is not None:
            return  # its gate adopts
        round = newest_adoptable(record.run, record.closed)
        if round is None or self._adopted.get(record.id, -1) >= round:
            return
        if is_doubted(view, record.id, round):
            return
        model = MODELS.get(view, record.run.model)
        assert model is not None
        versions = versions_of(view, record.id, round, model.groups)
        is_done = model.adopted_run == record.id and model.adopted_round > round
        is_passed = any(g.run != record.id for g in GROUPS.scan(view, model.id))
        if versions is None or is_done or is_passed:
            return
        if not self._is_my_turn(view, (record.id, round), height):
            return
        try:
            await self._make(
                Adoption(
                    version=FORMAT_VERSION,
                    model=model.id,
                    run=record.id,
                    round=round,
                    heads_root=heads_root([version.tiles for version in versions]),
                    score_before_micro=0,
                    score_after_micro=0,
                ),
                meta_ref=model.id,
            )
        except (Ignore, Unavailable) as error:  # tried again after the next checkpoint
            logger.info("not adopted now: %s", error)
            return
        self._adopted[record.id] = round

    def _is_my_turn(self, view: View, what: tuple[bytes, int], height: int) -> bool:
        """True when those before this node had their time (adopting twice is harmless)."""
        due = self._due.setdefault(what, height)
        if len(self._due) > 1024:
            self._due.pop(next(iter(self._due)))
        before = self._turn(view, due)
        return before is not None and height >= due + before * PATIENCE
