"""Answers to train.gate: how a run's newest version was judged."""

from __future__ import annotations

from blyan_proto.block.gate import Gate
from blyan_proto.constants import PPM
from blyan_proto.rpc import gating as spec
from blyan_proto.rpc import train
from blyand.rpc.bind import Answers
from blyand.rpc.ordering import Ordering
from blyand.rpc.resolve import run_called
from blyand.rules.model.gate import (
    GATES,
    OPEN_GATES,
    Gated,
    Scored,
    Stand,
    quorum_of,
)

SEALED = "enough validators have measured it, and show what they found"
MEANING = {
    Stand.OPEN: "validators are measuring it; each seals its score until enough have",
    Stand.PASSED: "it was good enough, and is adopted",
    Stand.FAILED: "it was not certainly good enough; the older one stays adopted",
    Stand.EXPIRED: "too few validators scored in time, or it was overtaken",
}


def bind(answers: Answers, *, ordering: Ordering) -> None:
    """Bind train.gate."""

    @answers(train.gate)
    async def gate(params: spec.GetGate) -> spec.GateStand:
        view = ordering.view
        record = run_called(view, params.run, ordering.place_of)
        rule = record.run.gate
        gated = OPEN_GATES.get(view, record.id) or GATES.get(view, record.id)
        if rule is None:
            return _nothing(record.id, "heads of this run are adopted by schedule")
        if gated is None:
            return _nothing(record.id, "no version was up for adoption yet", rule)
        return spec.GateStand(
            run=record.id,
            gate=True,
            state=gated.stand.name.lower(),
            reason=_reason(gated),
            round=gated.round + 1,
            needed=quorum_of(rule),
            drawn=[account.hex() for account in gated.drawn],
            margin=rule.margin_micro / PPM,
            deviations=rule.bound_milli / 1000,
            sealed=len(gated.seals),
            scores=[score_of(rule, gated, one) for one in gated.scores],
            withheld=[account.hex() for account in gated.withheld],
        )


def _reason(gated: Gated) -> str:
    is_shown = gated.stand is Stand.OPEN and gated.sealed_ms is not None
    return SEALED if is_shown else MEANING[gated.stand]


def score_of(rule: Gate, gated: Gated, said: Scored) -> spec.GateScore:
    """Return a score as people read it; the bound in floats."""
    n, rise = said.windows, said.after_micro - said.before_micro
    variance = max(0, n * said.squares - rise * rise) / (n * n * (n - 1))
    bound = rise / n + rule.bound_milli / 1000 * variance**0.5
    return spec.GateScore(
        validator=said.account.hex(),
        windows=n,
        before=said.before_micro / n / PPM,
        after=said.after_micro / n / PPM,
        bound=bound / PPM,
        outlier=said.account in gated.outliers,
        median=said.account == gated.median,
    )


def _nothing(run: bytes, reason: str, rule: Gate | None = None) -> spec.GateStand:
    return spec.GateStand(
        run=run,
        gate=rule is not None,
        state="none",
        reason=reason,
        round=0,
        needed=quorum_of(rule) if rule else 0,
        drawn=[],
        margin=rule.margin_micro / PPM if rule else 0.0,
        deviations=rule.bound_milli / 1000 if rule else 0.0,
        sealed=0,
        scores=[],
        withheld=[],
    )
