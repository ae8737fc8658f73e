"""Audits without anybody asking, and what follows from any audit on this node.

After each round two of its seats are drawn to look at one learner each. Nothing here is
a fact on the chain: for what is certainly false this node takes no deltas of that
learner for a day; a difference between devices makes it look again.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable

import trio

from blyan_proto.errors import ProtocolError
from blyan_proto.protocols.delta import Bundle, EntryVerdict, Receipt, Verdict
from blyan_proto.signing import SigningKey
from blyan_proto.types import Role
from blyand.errors import ComputeFault, Unavailable
from blyand.events import Broadcast, CheckpointFinalised
from blyand.protocols.delta import signed_receipt
from blyand.rules.model import audit as rules
from blyand.rules.model.audit import Finding
from blyand.rules.model.places import open_runs
from blyand.rules.records import CLOCK, RUNS, SCHEDULES, RunRecord
from blyand.rules.view import View
from blyand.training.audit import Audit, Report

logger = logging.getLogger(__name__)

MAX_KNOWN = 4096  # learners refused, or doubted; the oldest is forgotten

Take = Callable[[Bundle], Awaitable[Receipt]]


class Inspector:
    """Draws audits, and remembers what they found."""

    def __init__(
        self,
        key: SigningKey,
        network: bytes,
        view: Callable[[], View],
        audit: Audit,
        events: Broadcast,
    ) -> None:
        self._key = key
        self._network = network
        self._account = key.account
        self._view = view
        self.audit = audit
        self._events = events
        self._refused: OrderedDict[bytes, float] = OrderedDict()  # -> trio time
        self._doubted: OrderedDict[bytes, None] = OrderedDict()

    def refuses(self, learner: bytes) -> bool:
        """True while this node takes no deltas of a learner (PODL-08)."""
        now: float = trio.current_time()
        return now < self._refused.get(learner, 0.0)

    def admitting(self, take: Take) -> Take:
        """Return `take` for everybody but learners that are refused."""

        async def admitted(bundle: Bundle) -> Receipt:
            manifest = bundle.manifest
            if not self.refuses(manifest.learner):
                return await take(bundle)
            verdicts = [
                EntryVerdict(entry.group, Verdict.REFUSED) for entry in manifest.entries
            ]
            return signed_receipt(self._key, self._network, manifest, verdicts)

        return admitted

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Look at the learner that is drawn for this node after each round."""
        closed: dict[bytes, int] = {}
        with self._events.subscribe(CheckpointFinalised) as facts:
            task_status.started()
            async for _ in facts:
                records = {record.id: record for record in open_runs(self._view())}
                for run in closed.keys() - records.keys():  # it ended: its last round
                    ended = RUNS.get(self._view(), run)
                    if ended is not None and closed[run] < ended.closed:
                        await self._look(ended, ended.closed - 1)
                for record in records.values():
                    if closed.get(record.id, 0) < record.closed:
                        await self._look(record, record.closed - 1)
                closed = {record.id: record.closed for record in records.values()}

    async def _look(self, record: RunRecord, round: int) -> None:
        for learner in self._drawn(record, round):
            count = rules.share_of(record.run.inner_steps)
            try:
                found = await self.audit.look(record, round, learner, count)
            except (Unavailable, ProtocolError, ComputeFault) as error:
                logger.info("no audit of round %d: %s", round, error)
            else:
                logger.info("audit of round %d: %s", round, found.reason)
                self.note(learner, found)

    def _drawn(self, record: RunRecord, round: int) -> list[bytes]:
        """Return the learners to look at: the one drawn, and those that are doubted."""
        clock = CLOCK.get(self._view())
        schedule = SCHEDULES.get(self._view(), record.id, round)
        if clock is None or schedule is None:
            return []
        learners = [seat for seat in schedule.seats if seat.roles & Role.LEARN]
        pairs = rules.pairs_of(clock.beacons[-1], schedule, learners)
        wanted = {pairs.get(self._account), *self._doubted}
        seated = {seat.account for seat in learners} - {self._account}
        return sorted(seated & wanted)

    def note(self, learner: bytes, report: Report) -> None:
        """Remember what follows from a finding."""
        if learner == self._account:
            return
        if report.finding is Finding.FAR:
            self._doubted[learner] = None
        elif report.repeated and report.finding is Finding.SOUND:
            self._doubted.pop(learner, None)
        if report.finding.refuses:
            account = learner.hex()
            logger.warning(
                "no deltas of %s are taken for a day: %s", account, report.reason
            )
            self._refused[learner] = trio.current_time() + rules.REFUSED_MS / 1000
            self._refused.move_to_end(learner)
        for known in (self._refused, self._doubted):
            while len(known) > MAX_KNOWN:
                known.popitem(last=False)
