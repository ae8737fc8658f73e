"""The daily audit: the purses, the postings and the supply must agree (LEDGER-05)."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from blyan_proto.amounts import bly
from blyand.compute import Threads
from blyand.errors import Busy
from blyand.events import Broadcast, CheckpointFinalised
from blyand.metrics import Metrics
from blyand.rules.economy import pools
from blyand.rules.economy.audit import Audit, Drift
from blyand.rules.economy.book import BALANCES, ISSUE, supply
from blyand.rules.records import CLOCK
from blyand.rules.view import View
from blyand.store.db import Superseded
from blyand.store.statements import Audited, Statements

logger = logging.getLogger(__name__)

DAY_MS = 86_400_000  # of chain time
AT_ONCE = 500  # purses in one turn of the lane: some milliseconds

Report = Callable[[int], Awaitable[None]]  # purses compared so far


@dataclass(frozen=True)
class Finding:
    """What an audit found."""

    height: int  # of the checkpoint whose state was audited
    since: int | None  # of the one that it was compared with; None: there was none
    purses: int
    sum_micro: int
    supply_micro: int
    drifts: tuple[Drift, ...]

    @property
    def sound(self) -> bool:
        """Everything is where it should be."""
        return not self.drifts and self.sum_micro == self.supply_micro


class Auditor:
    """Audits once a day of chain time, and whenever it is asked."""

    def __init__(
        self,
        freeze: Callable[[], View],
        statements: Statements,
        events: Broadcast,
        lane: Threads,
        metrics: Metrics,
        alarm: Callable[[int, str], None],
        time_of: Callable[[int], int | None] = lambda height: None,
        keep_days: int = 0,
    ) -> None:
        """`freeze` gives the executed state, to be read whatever is executed later.

        Statements older than `keep_days` of chain time, and than an audit, are dropped;
        0: none. `time_of` is the chain time of a checkpoint, None where it is not here.
        """
        self._freeze = freeze
        self._statements = statements
        self._events = events
        self._lane = lane
        self._alarm = alarm
        self._time_of = time_of
        self._keep_ms = keep_days * DAY_MS
        self._turn = trio.Lock()
        self._audits = metrics.counter("blyan_ledger_audits")
        self._drifts = metrics.counter("blyan_ledger_drifts")

    async def audit(self, report: Report) -> Finding:
        """Add everything up; a finding of nothing becomes the next one's baseline."""
        async with self._turn:
            view = self._freeze()
            clock = CLOCK.get(view)
            assert clock is not None
            whole_since = await self._lane.run(self._statements.whole_since)
            before = await self._lane.run(self._statements.audited)
            if before is None or whole_since is None or before.height < whole_since:
                before = None
                await self._lane.run(self._statements.drop_baseline)
            since = before.height if before else -1
            moved: dict[tuple[bytes, int], int] = {}
            expects = before is not None or whole_since == 0
            if expects:
                read = self._statements.moved
                moved = await self._lane.run(read, since, clock.height)
                moved = {k: v for k, v in moved.items() if k[0] != ISSUE}
            audit = Audit(
                now=(
                    ((balance.account, int(balance.purse)), balance.micro)
                    for balance in BALANCES.scan(view)
                ),
                before=self._statements.baseline(),
                moved=moved,
                expects=expects,
            )
            try:
                while await self._lane.run(audit.step, AT_ONCE):
                    await report(audit.purses)
            except Superseded as error:
                text = "the database was opened anew during the audit; try again"
                raise Busy(text) from error
            await report(audit.purses)
            finding = Finding(
                height=clock.height,
                since=max(since, 0) if audit.expects else None,
                purses=audit.purses,
                sum_micro=audit.sum_micro,
                supply_micro=supply(view).micro,
                drifts=tuple(audit.drifts),
            )
            self._audits.add()
            if finding.sound:
                audited = Audited(clock.height, clock.time_ms)
                keep = self._statements.keep_baseline
                await self._lane.run(keep, audit.changed, audited)
            else:
                self._complain(finding)
            return finding

    def _complain(self, finding: Finding) -> None:
        self._drifts.add(max(1, len(finding.drifts)))
        named = ", ".join(
            pools.RESERVED.get(drift.account, drift.account.hex())
            for drift in finding.drifts[:3]
        )
        text = (
            f"the ledger of this node is wrong at checkpoint {finding.height}: purses "
            f"hold {bly(finding.sum_micro)} of {bly(finding.supply_micro)}"
            + (f"; accounts {named}" if named else "")
            + ". Run `blyanctl ledger audit`, keep the home, and ask the developers"
        )
        logger.error("BROKEN %s", text)
        self._alarm(finding.height, text)

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Audit when a day of chain time has passed since the last one."""
        last = await self._lane.run(self._statements.audited)
        due_ms = last.time_ms + DAY_MS if last else 0
        with self._events.subscribe(CheckpointFinalised, capacity=1) as facts:
            task_status.started()
            async for fact in facts:
                now_ms = fact.final.checkpoint.time_ms
                if now_ms < due_ms:
                    continue
                try:
                    finding = await self.audit(_silent)
                except Busy:
                    continue  # with the next checkpoint
                logger.info("audited %d purses: %s", finding.purses, finding.sound)
                due_ms = now_ms + DAY_MS
                if finding.sound and self._keep_ms:
                    await self._prune(finding.height, now_ms - self._keep_ms)

    async def _prune(self, audited: int, before_ms: int) -> None:
        """Drop the statements of checkpoints before a time that were audited."""
        low, high = 0, audited  # the first height that stays is in between
        while low < high:
            middle = (low + high) // 2
            time_ms = await self._lane.run(self._time_of, middle)
            if time_ms is None or time_ms < before_ms:
                low = middle + 1
            else:
                high = middle
        while await self._lane.run(self._statements.prune, low):
            await trio.lowlevel.checkpoint()


async def _silent(purses: int) -> None:
    await trio.lowlevel.checkpoint()
