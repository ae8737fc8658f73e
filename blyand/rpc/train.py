"""Answers about training: start or join a run, stop learning here, look on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from blyan_proto.block.block import Block
from blyan_proto.rpc import explaining
from blyan_proto.rpc import train as spec
from blyan_proto.rpc.errors import RUN_ACTIVE, RUN_INVALID, RpcError
from blyan_proto.types import Role
from blyand.clock import Clock
from blyand.errors import TooSlow, Unavailable
from blyand.net.identity import peer_id_of
from blyand.rpc.audit import learner_called
from blyand.rpc.bind import Answers, Emit
from blyand.rpc.carried import Carried, Turn, where
from blyand.rpc.fates import Kept, explained, known_of
from blyand.rpc.ordering import Ordering
from blyand.rpc.report import reported
from blyand.rpc.reports import names_of
from blyand.rpc.resolve import dataset_called, model_called, newest_run, run_called
from blyand.rpc.rounds import Watching, follow
from blyand.rpc.runs import changed, is_spread, missing, run_of
from blyand.rpc.use import experts_used, layers_used, utilisation
from blyand.rules.model.dispute import is_single, open_disputes
from blyand.rules.model.election import ranks
from blyand.rules.model.model import layout_for
from blyand.rules.model.places import open_runs
from blyand.rules.model.schedule import next_round
from blyand.rules.records import (
    DATASETS,
    GROUPS,
    MODELS,
    RUNS,
    SCHEDULES,
    ModelRecord,
    RunRecord,
    Schedule,
)
from blyand.rules.view import View
from blyand.training.holder import Holder
from blyand.training.learner import Learner

SPREAD_S = 8.0  # for every registered node to take up its share
COVERED_S = 12.0  # on top, for every group to have a live learner
ORDERED_S = 35.0


def bind(
    answers: Answers,
    *,
    account: bytes,
    key: bytes,
    kept: Kept,
    clock: Clock,
    ordering: Ordering,
    make: Callable[..., Awaitable[Block]],
    holder: Holder,
    learner: Learner | None,
    watching: Watching,
    carried: Carried,
    liveness_ms: int,
) -> None:
    """Bind train.*. `learner` is None where this node does not learn."""
    starting = trio.Lock()

    @answers(spec.start)
    async def start(params: spec.Start) -> spec.Started:
        async with starting:
            record = _to_join(ordering, params)
            created = record is None
            if record is None:
                record = await _create(ordering, make, params, liveness_ms)
        if learner is not None:
            learner.resume()
        return started_of(ordering.view, record, created)

    @answers(spec.stop)
    async def stop(params: spec.StopLearning) -> spec.Stopped:
        record = open_run(ordering.view)
        if learner is None or learner.paused or record is None:
            record = None
        if learner is not None:
            learner.pause()
        return spec.Stopped(
            run=record.id if record else None, round=record.closed if record else 0
        )

    @answers(spec.status)
    async def status(params: spec.GetProgress) -> spec.Learning:
        view = ordering.view
        record = newest_run(view, ordering.place_of)
        state, reason = state_of(learner, record)
        if record is None:
            return nothing(state, reason)
        reports = watching.journal.all_reports(record.id)
        train = [r.train_loss for r in reports if r.train_loss is not None]
        judged = [r.held_out_loss for r in reports if r.held_out_loss is not None]
        model = MODELS.get(view, record.run.model)
        schedule = SCHEDULES.get(view, record.id, record.closed)
        # some microseconds per seat, group and draw
        turns = turns_of(view, record)
        led = await watching.lane.run(led_by, turns, account)
        region, carries = await where(carried, watching.lane, turns, account)
        within, between = carried.moved()
        return spec.Learning(
            state=state,
            reason=reason,
            run=record.id,
            model=model.model.name if model else None,
            round=max(record.closed, provisional_round(holder, record)),
            finalised_round=record.closed,
            rounds=record.run.rounds,
            inner=record.run.inner.name.lower(),
            tokens=sum(report.own_tokens for report in reports),
            train_loss=train[-1] if train else None,
            held_out_loss=judged[-1] if judged else None,
            learners=(
                sum(1 for seat in schedule.seats if seat.roles & Role.LEARN)
                if schedule
                else 0
            ),
            primary_of=led,
            region=region,
            edge_of=carries,
            within_bytes=within,
            between_bytes=between,
            single=sum(
                is_single(view, record.run.model, group.group)
                for group in GROUPS.scan(view, record.run.model)
            ),
            disputed=sum(one.run == record.id for one in open_disputes(view)),
            utilisation=utilisation(reports),
            layers=layers_used(model.model, reports) if model else [],
            experts=experts_used(model.model, reports) if model else [],
        )

    @answers(spec.watch)
    async def watch(params: spec.Watch, emit: Emit) -> spec.Watched:
        record = run_called(ordering.view, params.run, ordering.place_of)
        return await follow(watching, record.id, emit, params.live)

    @answers(spec.report)
    async def report(params: spec.GetReport) -> spec.Reported:
        record = run_called(ordering.view, params.run, ordering.place_of)
        return await reported(watching, record, peer_id_of(key), clock.now_ms())

    @answers(spec.explain)
    async def explain(params: explaining.ExplainRound) -> explaining.RoundExplained:
        view, round = ordering.view, params.round - 1
        record = run_called(view, params.run, ordering.place_of)
        learner = learner_called(view, params.peer, account)
        known = await watching.lane.run(
            known_of, view, kept, record, round, learner, account
        )
        return explained(known, names_of(view, record), record, round, key)


def open_run(view: View) -> RunRecord | None:
    """Return the run under way, as a learner finds it; None without one."""
    return next(open_runs(view), None)


def _to_join(ordering: Ordering, params: spec.Start) -> RunRecord | None:
    """Return the open run that the caller means; None when there is none to join."""
    view = ordering.view
    if params.run is not None:
        record = run_called(view, params.run, ordering.place_of)
        if params.model is not None:
            if model_called(view, params.model).id != record.run.model:
                raise RpcError(RUN_INVALID, "that run trains another model")
    else:
        model = model_called(view, params.model)
        found = RUNS.get(view, model.run) if model.run else None
        if found is None:
            return None
        record = found
    if record.finished:
        text = f"that run is finished after {record.closed} rounds; start a new one"
        raise RpcError(RUN_INVALID, text)
    datasets = record.run.datasets
    if params.dataset is not None:
        datasets = (dataset_called(view, params.dataset).id,)
    if changed(record.run, params) != record.run or datasets != record.run.datasets:
        raise RpcError(
            RUN_ACTIVE,
            f"run {record.id.hex()[:16]} of this model is under way with other "
            "settings; leave them out to join it",
        )
    return record


async def _create(
    ordering: Ordering,
    make: Callable[..., Awaitable[Block]],
    params: spec.Start,
    liveness_ms: int,
) -> RunRecord:
    """Publish a new run and wait until it is open."""
    model = model_called(ordering.view, params.model)
    dataset = dataset_called(ordering.view, params.dataset)
    run = run_of(params, model, dataset.id)
    await _covered(ordering, model, liveness_ms)
    block = await make(run, subject=model.model.name, meta_ref=model.id)
    refused = await ordering.wait(block.id, ORDERED_S)
    if refused is not None:
        now = MODELS.get(ordering.view, model.id)
        code = RUN_ACTIVE if now is not None and now.run else RUN_INVALID
        raise RpcError(code, f"the network refused the run: {refused}")
    record = RUNS.get(ordering.view, block.id)
    assert record is not None  # its block took effect
    return record


async def _covered(ordering: Ordering, model: ModelRecord, liveness_ms: int) -> None:
    """Wait until live learners hold every group: a run's first rounds seat them alone.

    Nodes that are registered and gone are waited for, but not for ever.
    """
    if model.weights < model.groups:
        raise Unavailable("the model's first weights are not complete")
    try:
        await ordering.until(
            lambda: is_spread(ordering.view, model, liveness_ms), SPREAD_S
        )
    except TooSlow:
        pass
    try:
        await ordering.until(
            lambda: not missing(ordering.view, model, liveness_ms), COVERED_S
        )
    except TooSlow:
        lacking = missing(ordering.view, model, liveness_ms)
        others = len(lacking) - 1
        more = f" and {others} other groups" if others else ""
        raise Unavailable(
            f"no live learner that is not banned holds {lacking[0]}{more}; is a node with "
            "the role learn up, and has it fetched the model?"
        ) from None


def started_of(view: View, record: RunRecord, created: bool) -> spec.Started:
    """Return a run that this node takes part in as declared."""
    model = MODELS.get(view, record.run.model)
    dataset = DATASETS.get(view, record.run.datasets[0])
    assert model is not None and dataset is not None  # the run's rule asked for them
    return spec.Started(
        run=record.id,
        created=created,
        model=model.model.name,
        model_id=model.id,
        dataset=dataset.dataset.name,
        rounds=record.run.rounds,
        round=record.closed,
    )


def state_of(learner: Learner | None, record: RunRecord | None) -> tuple[str, str]:
    """Return what this node does, in a word and in a sentence."""
    if learner is None:
        return "off", "this node does not learn; see node.roles and training.enabled"
    reason = learner.status
    if learner.paused or (reason.startswith("paused") and record is not None):
        return "paused", reason
    if record is None:
        return "waiting", reason
    if record.finished:
        if record.closed < record.run.rounds:
            return "finished", "it stood still, and made room for another run"
        return "finished", f"all {record.closed} rounds are closed"
    if reason.startswith(("training", "handing in")) or "updates of round" in reason:
        return "learning", reason
    return "waiting", reason


def nothing(state: str, reason: str) -> spec.Learning:
    """Return where training stands without any run."""
    return spec.Learning(
        state=state,
        reason=reason,
        run=None,
        model=None,
        round=0,
        finalised_round=0,
        rounds=0,
        inner=None,
        tokens=0,
        train_loss=None,
        held_out_loss=None,
        learners=0,
        primary_of=[],
        region=None,
        edge_of=[],
        within_bytes=0,
        between_bytes=0,
        single=0,
        disputed=0,
        utilisation=None,
        layers=[],
        experts=[],
    )


def provisional_round(holder: Holder, record: RunRecord) -> int:
    """Return how many rounds all groups held here are through, finalised or not."""
    heads = [
        holder.head(record.run.model, group) for group in holder.held(record.run.model)
    ]
    rounds = [h.rounds if h and h.run == record.id else 0 for h in heads]
    return min(rounds, default=0)


def turns_of(view: View, record: RunRecord) -> list[Turn]:
    """Return the groups of an open run whose next round is scheduled."""
    model = MODELS.get(view, record.run.model)
    if model is None or record.finished:
        return []
    groups = layout_for(model.model).groups
    schedules: dict[int, Schedule | None] = {}
    turns = []
    for heads in GROUPS.scan(view, model.id):
        round = next_round(heads, record.id)
        if round not in schedules:
            schedules[round] = SCHEDULES.get(view, record.id, round)
        schedule = schedules[round]
        if schedule is not None:
            turns.append((groups[heads.group].name, heads.group, schedule))
    return turns


def led_by(turns: list[Turn], account: bytes) -> list[str]:
    """Return the names of the groups whose next update an account is to publish."""
    return [
        name
        for name, group, schedule in turns
        if any(seat.account == account for seat in ranks(schedule, group)[:1])
    ]
