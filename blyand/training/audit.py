"""Looking at what a learner learned from: drawn steps of its log, some of them repeated.

The learner shows; the chain says what was assigned and what counted; the batches are
derived again, and the first steps are repeated in a worker, if that is asked for.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from blyan_proto.block.block import Block
from blyan_proto.block.model import TileUpdate
from blyan_proto.errors import UnexpectedMessage
from blyan_proto.protocols.audit import (
    MAX_ASKED,
    Absent,
    Ask,
    LoggedStep,
    LogStatement,
    Shown,
    check_shown,
)
from blyan_proto.types import Role, bitmap
from blyan_tile.batches import assign, batch_digest, gather
from blyan_tile.corpus import Archive
from blyan_tile.learner import GroupFiles, LearnJob
from blyan_tile.reexecution import Repeated, RepeatJob
from blyand.compute import Threads, Worker
from blyand.errors import NotHere
from blyand.rules.model import audit as rules
from blyand.rules.model.audit import Finding
from blyand.rules.model.election import seat_of
from blyand.rules.model.model import layout_for, require_model
from blyand.rules.records import (
    CLOCK,
    DATASETS,
    SCHEDULES,
    VERSIONS,
    VERSIONS_KEPT,
    RunRecord,
    Schedule,
    Seat,
)
from blyand.rules.view import View
from blyand.store.blobs import BlobStore

DEVICE = "cpu"  # where rounds are repeated: every node has one

Answer = Shown | Absent


@dataclass(frozen=True)
class Report:
    """What one audit saw."""

    finding: Finding
    reason: str  # a sentence
    steps: int = 0  # of the log
    checked: int = 0  # steps whose batches were derived again
    confidence_ppm: int = 0  # that this shows a lie in a tenth of the steps
    repeated: int = 0
    worst_micro: int = 0  # largest difference of a loss among them
    statement: LogStatement | None = None
    device: str = ""  # that repeated
    is_exact: bool = False  # repeated on the same class of device
    listed: int = 0  # groups in which the chain counts this learner's delta


@dataclass(frozen=True)
class Logs:
    """How logs are reached."""

    ask: Callable[[str, Ask], Awaitable[Answer]]
    own: Callable[[Ask], Awaitable[Answer]]
    peer_of: Callable[[bytes], str | None]


@dataclass(frozen=True)
class _Case:
    """A learner's part in a round, as the chain has it."""

    record: RunRecord
    schedule: Schedule
    seat: Seat
    listed: tuple[tuple[int, bytes, int], ...]  # group, digest of its delta, tokens


class Audit:
    """Looks at learners' logs from this node."""

    def __init__(
        self,
        account: bytes,
        network: bytes,
        view: Callable[[], View],
        block: Callable[[bytes], Block | None],
        blobs: BlobStore,
        lane: Threads,
        worker: Worker,
        logs: Logs,
        fetch: Callable[[bytes], Awaitable[None]],
        borrow: Callable[[bytes], Awaitable[None]],
        uses: Callable[[bytes], bool],
    ) -> None:
        """`borrow` fetches a tile that may go again; `uses`: a version stands on it."""
        self._account = account
        self._network = network
        self._view = view
        self._block = block
        self._blobs = blobs
        self._lane = lane
        self._worker = worker
        self._logs = logs
        self._fetch = fetch
        self._borrow = borrow
        self._uses = uses

    async def look(
        self,
        record: RunRecord,
        round: int,
        learner: bytes,
        count: int,
        repeat: int = 0,
        report: Callable[[int, int], None] = lambda done, total: None,
    ) -> Report:
        """Look at `count` drawn steps of a learner's log; repeat its first `repeat`.

        Unavailable when the round is no longer known, or nobody answers; ProtocolError
        for an answer that is not the learner's, ComputeFault when the worker fails.
        """
        case = self._case(record, round, learner)
        if repeat and round and record.run.from_residual:
            raise NotHere(
                "learners of this run begin a round at the base minus what they could "
                "not send before; their logs name only its digest, so nobody else can "
                "repeat the steps: audit without repeating, or repeat round 1"
            )
        clock = CLOCK.get(self._view())
        assert clock is not None
        shown = await self._shown(case, [0])
        if shown is None:
            return self._absent(case)
        statement, log = shown
        if statement.lease_epoch != case.schedule.epoch:
            raise NotHere("its log is of another schedule of that round")
        found = Report(
            Finding.SOUND,
            "",
            statement.steps,
            statement=statement,
            listed=len(case.listed),
        )
        counted = [tokens for _, _, tokens in case.listed]
        if rules.lacks(statement, record.run, counted):
            reason = f"its log has {statement.steps} steps, and more tokens counted"
            return replace(found, finding=Finding.SHORT, reason=reason)
        repeat = min(repeat, statement.steps)
        seed = rules.seed_of(clock.beacons[-1], record.id, round, learner)
        drawn = rules.drawn_steps(seed, statement.steps, count)
        wanted = sorted({*drawn, *range(repeat)} - {0})
        more = await self._shown(case, wanted, statement)
        if more is None:
            return self._absent(case)
        log |= more[1]
        # Only what was drawn could not be known; of what is all, nothing can hide.
        is_all = len(log) == statement.steps
        checked = statement.steps if is_all else len(drawn)
        confidence = rules.confidence_ppm(statement.steps, checked)
        found = replace(found, checked=len(log), confidence_ppm=confidence)
        group = rules.hides(statement, ((at, delta) for at, delta, _ in case.listed))
        if group is not None:
            reason = (
                f"the chain counts a delta of group {group} that its log does not name"
            )
            return replace(found, finding=Finding.OTHER_DELTA, reason=reason)
        false = await self._false_batch(case, log)
        if false is not None:
            reason = f"step {false + 1} learned from other text than was assigned"
            return replace(found, finding=Finding.FALSE_BATCH, reason=reason)
        if repeat:
            first = [log[index] for index in range(repeat)]
            found = await self._repeated(case, found, first, report)
        reason = found.reason or (
            f"{len(log)} of {statement.steps} steps are as they should be"
        )
        return replace(found, reason=reason)

    def _case(self, record: RunRecord, round: int, learner: bytes) -> _Case:
        view = self._view()
        schedule = SCHEDULES.get(view, record.id, round)
        if schedule is None or round >= record.closed:
            raise NotHere(
                f"round {round + 1} cannot be audited: rounds "
                f"{max(1, record.closed - VERSIONS_KEPT + 1)} to {record.closed} can"
            )
        seat = seat_of(schedule, learner)
        if seat is None or not seat.roles & Role.LEARN:
            raise NotHere("it was no learner of that round")
        listed = []
        for group in layout_for(require_model(view, record.run.model).model).groups:
            version = VERSIONS.get(view, record.id, round, group.index)
            made = self._block(version.update) if version else None
            if made is not None and isinstance(made.content, TileUpdate):
                for part in made.content.contributions:
                    if part.learner == learner and made.content.round == round:
                        listed.append((group.index, part.delta, part.tokens))
        return _Case(record, schedule, seat, tuple(listed))

    def _absent(self, case: _Case) -> Report:
        """Return the finding about a learner without a log; NotHere: it owes none."""
        if not case.listed:
            raise NotHere("it has no log of that round, and nothing of it counted")
        reason = "its delta counted in that round, and it shows no log of it"
        return Report(Finding.ABSENT, reason, listed=len(case.listed))

    async def _shown(
        self,
        case: _Case,
        indices: Sequence[int],
        statement: LogStatement | None = None,
    ) -> tuple[LogStatement, dict[int, LoggedStep]] | None:
        """Return the signed part and the steps; None where the learner has no log.

        `statement`: the signed part that was shown before. UnexpectedMessage if this
        one is another.
        """
        peer = self._logs.peer_of(case.seat.account)
        is_own = case.seat.account == self._account
        if peer is None and not is_own:
            raise NotHere("its node is not known here")
        log: dict[int, LoggedStep] = {}
        for start in range(0, len(indices), MAX_ASKED):
            part = tuple(indices[start : start + MAX_ASKED])
            ask = Ask(case.record.id, case.schedule.round, part)
            answer = await (
                self._logs.own(ask) if is_own else self._logs.ask(peer or "", ask)
            )
            if isinstance(answer, Absent):
                return None
            check_shown(ask, answer, case.seat.account, case.seat.key, self._network)
            if statement not in (None, answer.log.statement):
                raise UnexpectedMessage("two logs of one round")
            statement = answer.log.statement
            log |= {one.index: one.step for one in answer.steps}
        assert statement is not None  # at least one step is asked for at first
        return statement, log

    async def _archives(self, case: _Case) -> list[bytes]:
        """Return the blobs of the run's datasets, once they are here."""
        found = []
        for id in case.record.run.datasets:
            dataset = DATASETS.get(self._view(), id)
            assert dataset is not None  # the run's rule asked for it
            await self._fetch(dataset.dataset.blob)
            found.append(dataset.dataset.blob)
        return found

    async def _false_batch(self, case: _Case, log: dict[int, LoggedStep]) -> int | None:
        """Return a step whose batch is not what was assigned; None: all are."""
        archives = await self._archives(case)
        return await self._lane.run(self._first_false, case, log, archives)

    def _first_false(
        self, case: _Case, log: dict[int, LoggedStep], archives: Sequence[bytes]
    ) -> int | None:
        run, schedule = case.record.run, case.schedule
        views = [
            view
            for blob in archives
            for view in Archive(self._blobs.open_array(blob)).train
        ]
        total = sum(len(view) for view in views)
        account = case.seat.account
        starts = assign(schedule.beacon, schedule.round, account, run, total)  # (H, B)
        for index, step in sorted(log.items()):
            tokens = gather(views, starts[index], run.sequence + 1)  # (B, T + 1)
            if batch_digest(tokens) != step.batch:
                return index
        return None

    async def _repeated(
        self,
        case: _Case,
        found: Report,
        first: Sequence[LoggedStep],
        report: Callable[[int, int], None],
    ) -> Report:
        """Repeat the first steps in a worker and compare."""
        statement = found.statement
        assert statement is not None
        job, new = await self._job(case, statement)
        try:
            result: Repeated = await self._worker.call(
                RepeatJob(job, len(first)), lambda p: report(p.done, p.total)
            )
        finally:
            for root in new:
                if not self._uses(root):
                    await self._lane.run(self._blobs.forget_derived, root)
        is_exact = result.device == statement.device
        finding, worst = rules.compare(first, result.log, is_exact)
        if finding is Finding.SOUND and is_exact and result.changes:
            told = {e.group: e.change for e in statement.entries if e.change}
            made = {one.group: one.change for one in result.changes}
            if any(made.get(group) != change for group, change in told.items()):
                finding = Finding.FALSE_STATE
        said = {
            Finding.SOUND: "agree" if not is_exact else "are equal to the last bit",
            Finding.FALSE_STATE: "give other bits on the same class of device",
            Finding.FALSE_BATCH: "learned from other text than was assigned",
            Finding.FAR: "are further away than another device explains",
        }[finding]
        return replace(
            found,
            finding=finding,
            reason=f"its first {len(first)} steps, repeated here, {said}",
            repeated=len(result.log),
            worst_micro=worst,
            device=result.device,
            is_exact=is_exact,
        )

    async def _job(
        self, case: _Case, statement: LogStatement
    ) -> tuple[LearnJob, set[bytes]]:
        """Return the learner's job, and the tiles that were fetched for it."""
        view, run, schedule = self._view(), case.record.run, case.schedule
        model = require_model(view, run.model).model
        layout = layout_for(model)
        base, new = [], set[bytes]()
        for entry in statement.entries:
            version = VERSIONS.get(view, case.record.id, schedule.round, entry.group)
            if entry.group >= len(layout.groups) or version is None:
                raise NotHere("the versions that the round began at are forgotten")
            for tile in version.base:
                if not await self._lane.run(self._blobs.has, tile.weights):
                    await self._borrow(tile.weights)
                    new.add(tile.weights)
            paths = tuple(str(self._blobs.path(tile.weights)) for tile in version.base)
            base.append(GroupFiles(entry.group, paths))
        archives = await self._archives(case)
        trained = frozenset(entry.group for entry in statement.entries)
        job = LearnJob(
            model=model,
            run=run,
            run_id=case.record.id,
            round=schedule.round,
            learner=case.seat.account,
            beacon=schedule.beacon,
            archives=tuple(str(self._blobs.path(blob)) for blob in archives),
            base=tuple(base),
            held=bitmap(trained, len(layout.groups)),
            settled=(),
            residuals="-",
            device=DEVICE,
            threads=min(statement.threads, 64),
            steps=statement.steps,
        )
        return job, new
