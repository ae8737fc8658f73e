"""What happened round by round on this node: what `train watch` shows."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

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
from blyand.rules.records import CLOCK, DATASETS, MODELS, RUNS, VERSIONS, RunRecord
from blyand.rules.view import View
from blyand.store.blobs import BlobStore

logger = logging.getLogger(__name__)

KEPT = 4096  # rounds remembered
AGAIN_S = 1.0  # until a judgement that peers could not help with is tried again
ATTEMPTS = 60  # at the last round of a run
BLOBS = "/blyan/blobs/1"

Evaluate = Callable[[Pinned, np.ndarray, int], Awaitable[float]]


@dataclass(frozen=True)
class Report:
    """One round, as this node saw it."""

    run: bytes
    round: int  # from 0, as the chain counts
    rounds: int
    train_loss: float | None = None  # this node's own, nats per token
    held_out_loss: float | None = None
    own_tokens: int = 0  # learnt from on this node
    learnt_s: float = 0.0  # of it, on this node
    shares: tuple[ExpertShare, ...] = ()  # of own_tokens, by expert
    tokens: int = 0  # by all learners
    bytes_up: int = 0
    bytes_down: int = 0
    float32_bytes: int = 0  # of the tensors behind bytes_up
    primaries: tuple[tuple[bytes, int], ...] = ()  # account, updates
    contributions: int = 0
    blocks: int = 0
    seconds: float = 0.0
    closed: bool = False


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
    ) -> None:
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
        self.progress = ""  # of the inner steps under way

    # What others tell

    def step(self, round: int, done: int, total: int, note: str) -> None:
        """An inner step of the round under way is done."""
        self.progress = f"round {round}: step {done} of {total}, {note}"
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
        self._set(
            run,
            round,
            train_loss=loss_micro / 1e6,
            own_tokens=tokens,
            learnt_s=seconds,
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
        while len(self._reports) > KEPT:
            self._reports.popitem(last=False)
        self._notify()

    # Following the chain

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Close the book on each round as it is finalised; judge the newest."""
        updates: dict[tuple[bytes, int], list[tuple[bytes, TileUpdate]]] = {}
        closed: dict[bytes, int] = {}
        with self._events.subscribe(CheckpointFinalised, capacity=4096) as facts:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._judge)
                self._follow()
                task_status.started()
                async for fact in facts:
                    for block in fact.blocks:
                        content = block.content
                        if isinstance(content, TileUpdate) and self._counts(block):
                            updates.setdefault((content.run, content.round), []).append(
                                (block.header.account, content)
                            )
                    self._follow()
                    for record in RUNS.scan(self._view()):
                        if record.id not in closed and not record.closed:
                            self._mark = self._now()
                        before = closed.get(record.id, record.closed)
                        closed[record.id] = record.closed
                        for round in range(before, record.closed):
                            made = updates.pop((record.id, round), [])
                            self._close(record, round, made)
                        if record.finished:
                            self._let_go(record.id)

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

    def _close(
        self, record: RunRecord, round: int, made: Sequence[tuple[bytes, TileUpdate]]
    ) -> None:
        now = self._now()
        float32_bytes, sent = self._sent.pop((record.id, round), (0, 0))
        counts: dict[bytes, int] = {}
        tokens: dict[bytes, int] = {}
        for account, update in made:
            counts[account] = counts.get(account, 0) + 1
            for part in update.contributions:
                known = tokens.get(part.learner, 0)
                tokens[part.learner] = max(known, part.tokens)
        self._set(
            record.id,
            round,
            tokens=sum(tokens.values()),
            bytes_up=sent,
            bytes_down=now.down - self._mark.down,
            float32_bytes=float32_bytes,
            primaries=tuple(sorted(counts.items())),
            contributions=sum(len(update.contributions) for _, update in made),
            blocks=len(made),
            seconds=now.at - self._mark.at,
            closed=True,
        )
        self._mark = now

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
            else:
                self._judged[record.id] = round
                self._set(record.id, round, held_out_loss=loss)

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
