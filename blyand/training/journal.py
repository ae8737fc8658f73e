"""What happened round by round on this node: what `train watch` shows."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import trio

from blyan_proto.block.block import Block
from blyan_proto.block.model import TileUpdate
from blyan_proto.errors import ProtocolError
from blyan_tile.corpus import Archive, joined
from blyan_tile.learner import ExpertShare
from blyand.compute import Threads
from blyand.errors import Unavailable
from blyand.events import Broadcast, CheckpointFinalised
from blyand.rules.model.adoption import versions_of
from blyand.rules.model.heads import Pinned, Which, pin
from blyand.rules.model.model import layout_for
from blyand.rules.records import (
    CLOCK,
    DATASETS,
    MODELS,
    RUNS,
    SCHEDULES,
    VERSIONS,
    RunRecord,
)
from blyand.rules.view import View
from blyand.store.blobs import BlobStore
from blyand.store.rounds import BEFORE, ROUNDS_KEPT, RUNS_KEPT, Report, Rounds, micro
from blyand.training.tally import Tally, tally

logger = logging.getLogger(__name__)

AGAIN_S = 1.0  # until a judgement that peers could not help with is tried again
ATTEMPTS = 60  # at the last round of a run
BLOBS = "/blyan/blobs/1"


class Step(NamedTuple):
    """How far the inner steps of a round are on this node."""

    round: int
    done: int
    total: int
    note: str


Evaluate = Callable[[Pinned, np.ndarray, int], Awaitable[float]]


@dataclass(frozen=True)
class _Mark:
    """Counters when the last round closed."""

    down: int
    at: float


class Journal:
    """Collects reports; listeners wait for changes."""

    def __init__(
        self,
        view: Callable[[], View],
        traffic: Callable[[], dict[str, tuple[int, int]]],
        blobs: BlobStore,
        lane: Threads,
        events: Broadcast,
        evaluate: Evaluate,
        fetch: Callable[[bytes], Awaitable[None]],
        account: bytes,
        rounds: Rounds,
        disk: Threads,
    ) -> None:
        """`disk` reads and writes `rounds`: what outlives the daemon."""
        self._rounds = rounds
        self._disk = disk
        self._view = view
        self._traffic = traffic
        self._blobs = blobs
        self._lane = lane
        self._events = events
        self._evaluate = evaluate
        self._fetch = fetch
        self._account = account
        self._reports: OrderedDict[tuple[bytes, int], Report] = OrderedDict()
        # (run, round) -> float32 bytes, bytes
        self._sent: dict[tuple[bytes, int], tuple[int, int]] = {}
        self._mark = _Mark(0, 0.0)
        self._changed = trio.Event()
        self._before: dict[bytes, float | None] = {}  # run -> loss before its rounds
        self._judged: dict[bytes, int] = {}  # run -> newest round judged
        self._judging: tuple[bytes, int | None] | None = None
        self._followed: set[bytes] = set()  # runs that were open since the start
        self.step_now: Step | None = None  # of the inner steps under way

    # What others tell

    def step(self, round: int, done: int, total: int, note: str) -> None:
        """An inner step of the round under way is done."""
        self.step_now = Step(round, done, total, note)
        self._notify()

    def trained(
        self,
        run: bytes,
        round: int,
        loss_micro: int,
        tokens: int,
        seconds: float,
        shares: tuple[ExpertShare, ...] = (),
    ) -> None:
        """This node trained a round."""
        for known in self.all_reports(run):
            if known.shares:  # those of the newest round are asked for
                self._reports[run, known.round] = replace(known, shares=())
        self.step_now = None
        self._set(
            run,
            round,
            train_micro=max(0, loss_micro),
            own_tokens=tokens,
            learnt_ms=int(seconds * 1000),
            shares=shares,
        )

    def handed_over(
        self, run: bytes, round: int, float32_bytes: int, sent_bytes: int
    ) -> None:
        """Deltas left over a stream: what they stand for, and what was sent."""
        before, sent = self._sent.get((run, round), (0, 0))
        self._sent[run, round] = (before + float32_bytes, sent + sent_bytes)

    # What is shown

    def reports(self, run: bytes) -> list[Report]:
        """Return the closed rounds of a run, oldest first."""
        return [report for report in self.all_reports(run) if report.closed]

    def all_reports(self, run: bytes) -> list[Report]:
        """Return the rounds of a run that are closed or trained here, oldest first."""
        found = [report for report in self._reports.values() if report.run == run]
        return sorted(found, key=lambda report: report.round)

    def before(self, run: bytes) -> float | None:
        """Return the held-out loss before a run's first round, where it was judged."""
        return self._before.get(run)

    def awaits(self, record: RunRecord, round: int | None) -> bool:
        """True while the held-out loss of a round (None: before the first) is to come.

        Only the newest closed round is judged, so of older ones none comes any more.
        """
        if record.author != self._account:
            return False
        if record.finished and record.id not in self._followed:
            return False  # it ended before this daemon began
        if self._judging == (record.id, round):
            return True
        if round is None:
            return record.closed == 0 and record.id not in self._before
        newest = record.closed - 1
        return round == newest and self._judged.get(record.id, -1) < newest

    async def changed(self) -> None:
        """Return when a report or the progress changed."""
        await self._changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _set(self, run: bytes, round: int, **changes: object) -> None:
        record = RUNS.get(self._view(), run)
        rounds = record.run.rounds if record else 0
        known = self._reports.get((run, round)) or Report(run, round, rounds)
        self._reports[run, round] = replace(known, **changes)  # type: ignore[arg-type]
        while len(self._reports) > ROUNDS_KEPT:
            self._reports.popitem(last=False)
        self._notify()

    async def _keep(self, run: bytes, round: int) -> None:
        """Let a closed round outlive this daemon."""
        report = self._reports.get((run, round))
        if report is not None and report.closed:
            await self._disk.run(self._rounds.put, report, round + 1)

    async def _remember(self) -> None:
        """Take up what a former life of this daemon kept."""
        for place, report in await self._disk.run(self._rounds.reports):
            if place == BEFORE:
                self._before[report.run] = report.held_out_loss
                continue
            self._reports[report.run, report.round] = report
            if report.held_out_micro is not None:
                newest = self._judged.get(report.run, -1)
                self._judged[report.run] = max(newest, report.round)

    async def _forget_old(self) -> None:
        """Drop the runs that began before the newest RUNS_KEPT."""
        since = {run: 0 for run in self._before}
        for report in self._reports.values():
            since[report.run] = max(since.get(report.run, 0), report.closed_ms)
        open_runs = {r.id for r in RUNS.scan(self._view()) if not r.finished}
        old = sorted(since.keys() - open_runs, key=lambda run: since[run])
        for run in old[: max(0, len(since) - RUNS_KEPT)]:
            await self._disk.run(self._rounds.forget, run)
            self._before.pop(run, None)
            for key in [key for key in self._reports if key[0] == run]:
                del self._reports[key]

    # Following the chain

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Close the book on each round as it is finalised; judge the newest."""
        updates: dict[tuple[bytes, int], list[Block]] = {}
        closed: dict[bytes, int] = {}
        await self._remember()
        with self._events.subscribe(CheckpointFinalised, capacity=4096) as facts:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._judge)
                self._follow()
                task_status.started()
                async for fact in facts:
                    for block in fact.blocks:
                        content = block.content
                        if isinstance(content, TileUpdate) and self._counts(block):
                            place = (content.run, content.round)
                            updates.setdefault(place, []).append(block)
                    self._follow()
                    for record in RUNS.scan(self._view()):
                        if record.id not in closed and not record.closed:
                            self._mark = self._now()
                        before = closed.get(record.id, record.closed)
                        closed[record.id] = record.closed
                        for round in range(before, record.closed):
                            made = updates.pop((record.id, round), [])
                            await self._close(record, round, made)
                        if record.finished and before < record.closed:
                            self._let_go(record.id)
                            await self._forget_old()

    def _counts(self, block: Block) -> bool:
        """True when an ordered update took effect: others are kept by nobody."""
        update: TileUpdate = block.content
        place = (update.run, update.round, update.group)
        version = VERSIONS.get(self._view(), *place)
        return version is not None and version.update == block.id

    def _let_go(self, run: bytes) -> None:
        for key in [key for key in self._sent if key[0] == run]:
            del self._sent[key]

    def _follow(self) -> None:
        open_runs = {r.id for r in RUNS.scan(self._view()) if not r.finished}
        if not open_runs <= self._followed:
            self._followed |= open_runs
            self._notify()  # there is a run to judge

    def _now(self) -> _Mark:
        traffic = self._traffic()
        return _Mark(traffic.get(BLOBS, (0, 0))[1], trio.current_time())

    async def _close(
        self, record: RunRecord, round: int, made: Sequence[Block]
    ) -> None:
        now = self._now()
        float32_bytes, sent = self._sent.pop((record.id, round), (0, 0))
        counted = await self._tally(record, round, made)
        clock = CLOCK.get(self._view())
        self._set(
            record.id,
            round,
            tokens=counted.tokens,
            bytes_up=sent,
            bytes_down=max(0, now.down - self._mark.down),
            float32_bytes=float32_bytes,
            primaries=counted.primaries,
            contributions=counted.contributions,
            blocks=len(made),
            took_ms=int((now.at - self._mark.at) * 1000),
            closed=True,
            closed_ms=clock.time_ms if clock else 0,
            parts=counted.parts,
            learners=counted.learners,
            takeovers=counted.takeovers,
        )
        self._mark = now
        await self._keep(record.id, round)
        await self._disk.run(self._rounds.put_moves, record.id, round, counted.moves)
        await self._disk.run(self._rounds.trim, record.id, round + 1)

    async def _tally(
        self, record: RunRecord, round: int, made: Sequence[Block]
    ) -> Tally:
        view = self._view()
        model = MODELS.get(view, record.run.model)
        layout = layout_for(model.model) if model else None
        schedule = SCHEDULES.get(view, record.id, round)
        return await self._disk.run(tally, made, schedule, layout)

    async def _judge(self) -> None:
        """Evaluate the runs that this node began, and their newest rounds (DEC-B17)."""
        failures = 0
        while True:
            due = self._to_judge()
            if due is None:
                await self.changed()
                continue
            record, round = due
            self._judging = (record.id, round)
            try:
                loss = await self.held_out_loss(record, round)
            except Unavailable as error:
                logger.info("no held-out loss yet: %s", error)
                failures += 1
                if failures < ATTEMPTS or not record.finished:
                    await trio.sleep(AGAIN_S)
                    continue
                loss = None
            except ProtocolError as error:
                logger.warning("no held-out loss: %s", error)
                loss = None
            finally:
                self._judging = None
            failures = 0
            if round is None:
                self._before[record.id] = loss
                self._notify()
                first = Report(record.id, 0, record.run.rounds)
                first = replace(first, held_out_micro=micro(loss))
                await self._disk.run(self._rounds.put, first, BEFORE)
            else:
                self._judged[record.id] = round
                self._set(record.id, round, held_out_micro=micro(loss))
                await self._keep(record.id, round)

    def _to_judge(self) -> tuple[RunRecord, int | None] | None:
        records = sorted(RUNS.scan(self._view()), key=lambda r: r.finished)
        for record in records:
            round = record.closed - 1 if record.closed else None
            if self.awaits(record, round):
                return record, round
        return None

    async def held_out_loss(self, record: RunRecord, round: int | None) -> float | None:
        """Return nats per token on fixed held-out text: after a round, or of adopted heads.

        None when state no longer knows that round's versions, or there is no text.
        Unavailable when experts cannot be reached, ProtocolError for a broken dataset.
        """
        view = self._view()
        model = MODELS.get(view, record.run.model)
        clock = CLOCK.get(view)
        assert model is not None and clock is not None
        if round is None:
            pinned = pin(view, model.id, Which.ADOPTED)
        else:
            versions = versions_of(view, record.id, round, model.groups)
            if versions is None:
                return None
            tiles = tuple(version.tiles for version in versions)
            pinned = Pinned(model.id, model.model, clock.height, tiles)
        if pinned is None:
            return None
        text = await self.held_out(record)
        if len(text) <= record.run.sequence:
            return None
        return await self._evaluate(pinned, text, record.run.sequence)

    async def held_out(self, record: RunRecord) -> np.ndarray:
        """Return the held-out bytes (n,) of a run's datasets."""
        sides: list[np.ndarray] = []
        for archive in await self.archives(record):
            sides += archive.held_out
        return await self._lane.run(joined, sides)

    async def archives(self, record: RunRecord) -> list[Archive]:
        """Return the run's datasets, fetched where needed and checked."""
        found = []
        for id in record.run.datasets:
            dataset = DATASETS.get(self._view(), id)
            assert dataset is not None
            await self._fetch(dataset.dataset.blob)
            array = self._blobs.open_array(dataset.dataset.blob)
            found.append(await self._lane.run(Archive, array))
        return found
