"""Answers to train.audit: a learner's log, looked at from here."""

from __future__ import annotations

import trio

from blyan_proto.errors import ProtocolError
from blyan_proto.rpc import auditing as spec
from blyan_proto.rpc import train
from blyan_proto.rpc.errors import RpcError
from blyand.errors import NotHere, Unavailable
from blyand.net.identity import peer_id_of
from blyand.rpc.accounts import account_called
from blyand.rpc.bind import Answers, Emit
from blyand.rpc.ordering import Ordering
from blyand.rpc.resolve import run_called
from blyand.rules.model.audit import share_of
from blyand.rules.records import NODES, RunRecord
from blyand.rules.view import View
from blyand.training.audit import Report
from blyand.training.inspector import Inspector

TOLD_EVERY_S = 0.5
LEAST_CHARACTERS = 6  # of the end of a peer id


def bind(
    answers: Answers, *, account: bytes, ordering: Ordering, inspector: Inspector
) -> None:
    """Bind train.audit."""

    @answers(train.audit)
    async def audit(params: spec.AuditLearner, emit: Emit) -> spec.Audited:
        record = run_called(ordering.view, params.run, ordering.place_of)
        learner = learner_called(ordering.view, params.learner, account)
        if not record.closed:
            raise NotHere("no round of that run is closed yet")
        round = record.closed if params.round is None else params.round
        steps = record.run.inner_steps
        count = share_of(steps) if params.steps is None else params.steps
        done = [0, 0]

        def note(*progress: int) -> None:
            done[:] = progress

        async def tell() -> None:
            while True:
                await trio.sleep(TOLD_EVERY_S)
                if done[1]:
                    await emit(spec.AuditStep(done=done[0], total=done[1]))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(tell)
            try:
                report = await inspector.audit.look(
                    record, round - 1, learner, count, params.repeat, note
                )
            except ProtocolError as error:
                raise Unavailable(f"its answer is of no use: {error}") from error
            finally:
                nursery.cancel_scope.cancel()
        inspector.note(learner, report)
        return audited(record, round, learner, report)


def learner_called(view: View, name: str, own: bytes) -> bytes:
    """Return the account that a caller means: also by a peer id, or its end. RpcError."""
    end = name.lstrip("…")
    ends = [
        node.account
        for node in NODES.scan(view)
        if peer_id_of(node.key).endswith(end) and len(end) >= LEAST_CHARACTERS
    ]
    if len(ends) == 1:
        return ends[0]
    try:
        return account_called(name, own)
    except RpcError as error:
        raise RpcError(
            error.code, f"{name[:80]!r} is no learner's peer id, account, or me"
        ) from None


def audited(
    record: RunRecord, round: int, learner: bytes, report: Report
) -> spec.Audited:
    """Return what an audit saw as declared."""
    said = report.statement
    return spec.Audited(
        run=record.id,
        round=round,
        learner=learner.hex(),
        finding=report.finding.value,
        reason=report.reason,
        steps=report.steps,
        checked=report.checked,
        confidence=report.confidence_ppm / 1e6,
        repeated=report.repeated,
        exact=report.is_exact,
        loss_difference=report.worst_micro / 1e6,
        groups=report.listed,
        samples=record.run.inner_steps * record.run.batch,
        datasets=list(record.run.datasets),
        log=said.log if said else None,
        device=said.device if said else "",
        own_device=report.device,
        seconds=said.worked_ms / 1000 if said else 0.0,
    )
