"""A whole run in one answer: what `train report` makes a page of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from blyan_proto.block.model import Run
from blyan_proto.rpc import train as spec
from blyand.rpc.chain import plain
from blyand.rpc.reports import Names, finite, names_of, report_of
from blyand.rpc.rounds import Watching, baselines_of
from blyand.rules.records import DATASETS, MODELS, RunRecord
from blyand.store.rounds import Report

HISTORY = 1000  # most rounds in an answer; of longer runs every second, third …


@dataclass
class _Total:
    rounds: int = 0
    tokens: int = 0
    listed: int = 0
    missed: int = 0
    clipped: int = 0
    primary_of: int = 0
    takeovers: int = 0


async def reported(
    watching: Watching, record: RunRecord, peer_id: str, now_ms: int
) -> spec.Reported:
    """Return what this node saw of a run, and what state says of it."""
    view, journal = watching.view(), watching.journal
    names = names_of(view, record)
    seen = journal.reports(record.id)
    losses = [r.held_out_loss for r in seen if r.held_out_loss is not None]
    up = sum(report.bytes_up for report in seen)
    whole = sum(report.float32_bytes for report in seen)
    every = -(-len(seen) // HISTORY) or 1
    shown = seen[::-1][::every][::-1]
    peers = watching.peers()
    model = MODELS.get(view, record.run.model)
    dataset = DATASETS.get(view, record.run.datasets[0])
    return spec.Reported(
        run=record.id,
        model=model.model.name if model else record.run.model.hex(),
        dataset=dataset.dataset.name if dataset else record.run.datasets[0].hex(),
        outcome=outcome_of(record),
        round=record.closed,
        rounds=record.run.rounds,
        tokens=sum(report.tokens for report in seen),
        seconds=sum(report.seconds for report in seen),
        bytes_up=up,
        bytes_down=sum(report.bytes_down for report in seen),
        compression_ratio=whole / up if whole and up else None,
        first_held_out_loss=finite(journal.before(record.id)),
        held_out_loss=losses[-1] if losses else None,
        baselines=await baselines_of(watching, record),
        peer_id=peer_id,
        made_ms=now_ms,
        learners=totals(names, seen),
        settings=settings_of(record.run),
        every=every,
        history=[report_of(names, report, peers) for report in shown],
    )


def outcome_of(record: RunRecord) -> str:
    """Return how a run stands, in words."""
    if not record.finished:
        return "open"
    if record.closed < record.run.rounds:
        return "it stood still, and made room for another run"
    return "finished"


def totals(names: Names, seen: Sequence[Report]) -> list[spec.LearnerTotal]:
    """Add up what each learner had in a run; most tokens first."""
    sums: dict[bytes, _Total] = {}
    for report in seen:
        for part in report.parts:
            one = sums.setdefault(part.account, _Total())
            one.rounds += part.listed > 0
            one.tokens += part.tokens
            one.listed += part.listed
            one.missed += part.missed
            one.clipped += part.clipped
        for led in report.primaries:
            sums.setdefault(led.account, _Total()).primary_of += led.groups
        for takeover in report.takeovers:
            sums.setdefault(takeover.account, _Total()).takeovers += 1
    order = sorted(sums.items(), key=lambda item: (-item[1].tokens, item[0]))
    return [
        spec.LearnerTotal(peer_id=names.peer(account), **vars(one))
        for account, one in order
    ]


def settings_of(run: Run) -> list[spec.RunSetting]:
    """Return a run's numbers as they stand in its block."""
    return [
        spec.RunSetting(name=field.name, value=_written(getattr(run, field.name)))
        for field in fields(run)
    ]


def _written(value: object) -> str:
    told = plain(value)
    if isinstance(told, list):
        return "; ".join(_written(item) for item in told)
    if isinstance(told, dict):
        return " ".join(f"{name} {item}" for name, item in told.items())
    return str(told)
