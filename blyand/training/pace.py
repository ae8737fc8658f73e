"""How a learner finds the number of inner steps that the others leave it time for."""

from __future__ import annotations

import logging
from dataclasses import replace

from blyan_proto.block.model import Run, TileUpdate
from blyand.rules.model.pace import Passed, Stride, next_stride
from blyand.rules.model.update import assigned_tokens

logger = logging.getLogger(__name__)


class Pace:
    """The steps of this learner in one run at a time."""

    def __init__(self, account: bytes) -> None:
        self._account = account
        self._run = b""
        self._stride = Stride(0)
        self._begun = -1  # the round under way, or the newest one
        self._may_judge = False  # it was begun when it opened
        self._passed: Passed | None = None
        self.done = 0  # steps of that round

    def steps(
        self, id: bytes, run: Run, round: int, before: TileUpdate | None, learners: int
    ) -> int:
        """Return the steps of a round that begins.

        `before` is the update of a group that all hold, of the round before this one;
        `learners` had a seat for it.
        """
        if id != self._run:
            self._run, self._stride, self._begun = id, Stride(run.inner_steps), -1
        is_next = round == self._begun + 1
        passed = self._passed if self._may_judge and is_next else None
        if passed is not None and before is not None and before.round == self._begun:
            self._judge(run, passed, before, learners)
        # Who starts in the middle of a round learns nothing of its pace.
        self._may_judge = is_next or round == self._begun and self._may_judge
        self._begun, self.done, self._passed = round, 0, None
        return self._stride.steps

    def learned(self, ms: int) -> None:
        """The steps of the round are done."""
        self._passed = Passed(self._stride.steps, False, True, True, ms, 0)

    def waited(self, ms: int) -> None:
        """The round is over, so long after that."""
        if self._passed is not None:
            self._passed = replace(self._passed, waited_ms=ms)

    def gave_up(self) -> None:
        """The round was over before the steps were done."""
        self._passed = Passed(self.done, False, True, True, 0, 0)

    def _judge(
        self, run: Run, passed: Passed, update: TileUpdate, learners: int
    ) -> None:
        parts = update.contributions
        passed = replace(
            passed,
            listed=any(part.learner == self._account for part in parts),
            most_were=2 * len(parts) >= learners,
            somebody_did_all=any(part.tokens >= assigned_tokens(run) for part in parts),
        )
        before, self._stride = self._stride, next_stride(run, self._stride, passed)
        if before.steps != self._stride.steps:
            logger.info("%d inner steps a round from now on", self._stride.steps)
