"""Learning: each round, train what this node holds in a worker and hand in the deltas.

A learner owns nothing that agreement depends on; its residuals are local files that may
vanish (DEC-B12 … B14). Where a rank does not answer, the bundle goes to the next one.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from blyan_proto.block.block import Block
from blyan_proto.block.model import TileUpdate
from blyan_proto.constants import PPM
from blyan_proto.errors import ProtocolError
from blyan_proto.types import Role, bitmap, members
from blyan_tile.jobs import Progress
from blyan_tile.layout import Layout
from blyan_tile.learner import GroupFiles, LearnJob, LearnResult
from blyan_tile.residual import Settled
from blyand.compute import GivenUp
from blyand.errors import ComputeFault, Unavailable
from blyand.events import Broadcast, CheckpointFinalised, HeadMoved
from blyand.rules.model.election import contributors, seat_of
from blyand.rules.model.model import layout_for, require_model
from blyand.rules.model.places import open_runs
from blyand.rules.model.schedule import next_round
from blyand.rules.records import (
    DATASETS,
    GROUPS,
    SCHEDULES,
    RunRecord,
)
from blyand.rules.view import View
from blyand.store.blobs import BlobStore
from blyand.training.crew import Crew
from blyand.training.delivery import Delivery, Round
from blyand.training.holder import Holder
from blyand.training.journal import Journal
from blyand.training.logbook import Logbook
from blyand.training.pace import Pace

logger = logging.getLogger(__name__)

AGAIN_S = 0.3
LOOK_S = 0.5
MAX_NAN_ROUNDS = 3  # DEC-B16
NOTHING = LearnResult(
    deltas=(), finite=True, steps=0, tokens=0, loss_micro=0, shares=()
)


class Learner:
    """Joins every open run of the models that this node holds."""

    def __init__(
        self,
        account: bytes,
        view: Callable[[], View],
        block: Callable[[bytes], Block | None],
        holder: Holder,
        blobs: BlobStore,
        worker: Crew,
        delivery: Delivery,
        fetch: Callable[[bytes], Awaitable[None]],
        events: Broadcast,
        journal: Journal,
        residuals: Path,
        device: str,
        threads: int,
        logbook: Logbook,
    ) -> None:
        self._account = account
        self._view = view
        self._block = block
        self._holder = holder
        self._blobs = blobs
        self._worker = worker
        self._delivery = delivery
        self._fetch = fetch
        self._events = events
        self._journal = journal
        self._residuals = residuals
        self._device = device
        self._threads = threads
        self.logbook = logbook
        self._pace = Pace(account)
        self._nan_rounds = 0
        self._cancel: trio.CancelScope | None = None
        self._stopped = ""  # why this node does not train; empty while it does
        self._doing = "no run is open"

    def pause(self) -> None:
        """Stop taking part, at once; a round under way is given up."""
        self._stop("stopped on this node; `blyanctl train start` joins again")

    def resume(self) -> None:
        """Take part again."""
        self._nan_rounds = 0
        self._stopped = ""

    @property
    def paused(self) -> bool:
        return bool(self._stopped)

    @property
    def status(self) -> str:
        """What this node does in training, or why it does nothing, in a sentence."""
        return self._stopped or self._doing

    def _stop(self, why: str) -> None:
        self._stopped = why
        if self._cancel is not None:
            self._cancel.cancel()

    def _say(self, doing: str) -> None:
        self._doing = doing

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Train round after round, as the chain opens them."""
        with self._events.subscribe(CheckpointFinalised, HeadMoved) as facts:
            async with trio.open_nursery() as self._nursery:
                task_status.started()
                while True:
                    with trio.CancelScope() as self._cancel:
                        await self._look()
                    with trio.move_on_after(LOOK_S):
                        await facts.receive()

    async def _look(self) -> None:
        """Train the round that is open, if it is ours to train.

        A node that stopped learning still lets rounds pass that the others trained.
        """
        self._doing = "no run is open"
        turn = None
        for record in open_runs(self._view()):
            if turn is None:
                turn = self._round_of(record)
        if turn is None or (self.paused and not turn.is_idle):
            return
        try:
            result = NOTHING if turn.is_idle else await self._learn(turn)
            learned = trio.current_time()
            await self._delivery.hand_in(
                turn, result, self._say, lambda: self._is_current(turn)
            )
            self._pace.waited(int((trio.current_time() - learned) * 1000))
        except GivenUp:
            logger.info("round %d went on without this node", turn.schedule.round)
        except (ComputeFault, ProtocolError, Unavailable) as error:
            self._doing = f"round {turn.schedule.round} failed here: {error}"
            logger.warning("%s", self._doing)
            await trio.sleep(LOOK_S)

    def _is_current(self, turn: Round) -> bool:
        """False once the round has another schedule, or a group another base.

        A delta is never sent for a base that it was not made for (DEC-B14).
        """
        run = turn.record.run
        schedule = SCHEDULES.get(self._view(), turn.record.id, turn.schedule.round)
        if schedule is not None and schedule.epoch != turn.schedule.epoch:
            return False
        for group, base in turn.bases.items():
            head = self._holder.head(run.model, group)
            if not self._delivery.is_past(turn, group):
                if head is not None and head.block != base.block:
                    return False
        return True

    def _round_of(self, record: RunRecord) -> Round | None:
        """Return the round to hand in now; None, with the reason in `status`, if none."""
        view = self._view()
        model = require_model(view, record.run.model)
        layout = layout_for(model.model)
        held = self._holder.held(model.id)
        shared = {group.index for group in layout.shared_groups}
        if not shared <= held:
            missing = len(shared - held)
            self._doing = f"waiting for {missing} groups that every node holds"
            return None
        rounds = {self._delivery.rounds(record, group) for group in held}
        round = min(rounds)
        if round >= record.run.rounds:
            self._doing = f"all {record.run.rounds} rounds are trained"
            return None
        schedule = SCHEDULES.get(view, record.id, round)
        if schedule is None:
            self._doing = self._why_closed(record, round, layout)
            return None
        seat = seat_of(schedule, self._account)
        if seat is None or not seat.roles & Role.LEARN:
            self._doing = f"round {round} was scheduled without this node"
            return None
        groups = held & members(seat.held)
        open_here = frozenset(
            group for group in groups if self._delivery.rounds(record, group) == round
        )
        if not open_here:
            self._doing = (
                f"waiting for others' updates of round {round}; "
                "`blyanctl consensus status` says whether enough nodes are up"
            )
            return None
        # Either the other groups' updates came without us, or our seat is of a time
        # when we did not hold all that training needs. The groups left may have no
        # other learner: saying that we have nothing lets them pass the round.
        is_idle = open_here != groups or not shared <= groups
        heads = {group: self._holder.head(model.id, group) for group in open_here}
        bases = {group: head for group, head in heads.items() if head is not None}
        return Round(record, schedule, layout, open_here, is_idle, bases)

    def _why_closed(self, record: RunRecord, round: int, layout: Layout) -> str:
        """Say what the round waits for that would open this one (DEC-A6)."""
        view = self._view()
        behind = round - record.run.rounds_ahead - 1
        said = f"paused: round {round} opens when round {behind} is finalised"
        late = [
            group.group
            for group in GROUPS.scan(view, record.run.model)
            if next_round(group, record.id) <= behind
        ]
        if any(self._delivery.rounds(record, group) > behind for group in late):
            return f"{said}; `blyanctl consensus status` says what that waits for"
        name = layout.groups[late[0]].name if late else "the model"
        return f"{said}; is a node that holds {name} running?"

    async def _learn(self, turn: Round) -> LearnResult:
        run, round = turn.record.run, turn.schedule.round
        self._doing = f"training round {round} of {run.rounds}"
        archives = []
        for id in run.datasets:
            dataset = DATASETS.get(self._view(), id)
            assert dataset is not None
            await self._fetch(dataset.dataset.blob)
            archives.append(str(self._blobs.path(dataset.dataset.blob)))
        job = LearnJob(
            model=require_model(self._view(), run.model).model,
            run=run,
            run_id=turn.record.id,
            round=round,
            learner=self._account,
            beacon=turn.schedule.beacon,
            archives=tuple(archives),
            base=tuple(self._files(turn, group) for group in sorted(turn.groups)),
            held=bitmap(turn.groups, len(turn.layout.groups)),
            settled=tuple(self._settled(turn)),
            residuals=str(self._residuals / turn.record.id.hex()[:16]),
            device=self._device,
            threads=self._threads,
            steps=self._steps(turn),
        )

        def step(at: Progress) -> None:
            self._pace.done = at.done
            self._journal.step(round, at.done, at.total, at.note)

        began = trio.current_time()
        over = trio.Event()
        self._nursery.start_soon(self._give_up_when_late, turn, over)
        try:
            result: LearnResult = await self._worker.call(job, step)
        except GivenUp:
            if self._is_past(turn):
                self._pace.gave_up()
            raise
        finally:
            over.set()
        if not result.finite:
            self._nan_rounds += 1
            if self._nan_rounds >= MAX_NAN_ROUNDS:
                self._stop(
                    f"stopped: {MAX_NAN_ROUNDS} rounds in a row gave numbers that are not "
                    "finite; lower the run's inner rate, then `blyanctl train start`"
                )
        else:
            self._nan_rounds = 0
        self._journal.trained(
            turn.record.id,
            round,
            result.loss_micro,
            result.tokens,
            trio.current_time() - began,
            result.shares,
        )
        worked_ms = int((trio.current_time() - began) * 1000)
        self._pace.learned(worked_ms)
        await self.logbook.keep(turn, result, self._threads, worked_ms)
        return result

    async def _give_up_when_late(self, turn: Round, over: trio.Event) -> None:
        """Stop training a round whose every update is out: join the next one at once.

        Likewise one that begins anew, at another version or under another lease.
        """
        while not over.is_set():
            if self._is_past(turn) or not self._is_current(turn):
                await self._worker.give_up()
            with trio.move_on_after(AGAIN_S):
                await over.wait()

    def _is_past(self, turn: Round) -> bool:
        return all(self._delivery.is_past(turn, group) for group in turn.groups)

    def _steps(self, turn: Round) -> int:
        """Return how many inner steps there is time for."""
        shared = turn.layout.shared_groups[0].index
        made = self._block(turn.bases[shared].block)
        update = made.content if made is not None else None
        before = update if isinstance(update, TileUpdate) else None
        learners = len(contributors(turn.schedule, shared, Role.LEARN))
        round, record = turn.schedule.round, turn.record
        return self._pace.steps(record.id, record.run, round, before, learners)

    def _files(self, turn: Round, group: int) -> GroupFiles:
        tiles = turn.bases[group].tiles
        return GroupFiles(
            group, tuple(str(self._blobs.path(tile.weights)) for tile in tiles)
        )

    def _settled(self, turn: Round) -> list[Settled]:
        """Say of each group whether the update of the last round listed our delta."""
        outcomes = []
        for group in sorted(turn.groups):
            block = self._block(turn.bases[group].block)
            if block is not None and isinstance(block.content, TileUpdate):
                update = block.content
                ours = [
                    part
                    for part in update.contributions
                    if part.learner == self._account
                ]
                clip = ours[0].clip_ppm if ours else PPM
                outcomes.append(Settled(update.round, group, bool(ours), clip))
        return outcomes
