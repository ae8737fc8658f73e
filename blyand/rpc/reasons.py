"""Why an account got what it got: formulas with their numbers, stages, what is due."""

from __future__ import annotations

import time
from collections.abc import Sequence

from blyan_proto.constants import PPM
from blyan_proto.genesis import Genesis
from blyan_proto.rpc import reward as spec
from blyand.rules.economy.duty import uptime_ppm
from blyand.rules.economy.reward import FAST_MS
from blyand.rules.economy.statement import Closed, Line, Share, Source
from blyand.rules.economy.work import JUDGING

MICRO = 1_000_000
FORMULAS = {
    Source.VALIDATOR: "pool x signed / checkpoints x (1 + uptime) x 1.1 if nearer than "
    f"{FAST_MS} ms x 1.2 without an offence",
    Source.INFERENCE: "for each expert: base x min(calls / 100, 2) x own part of the "
    "fees x max(0.5, 2 - seconds) x (1 + quality) x recency x alpha, at most the fees",
    Source.LEARNING: "rate x tokens learned from / groups of the model x (1 - alpha)",
    Source.VALIDATION: "rate x accepted submissions x reputation",
    Source.DATASET: "what its model gained by it",
}


def part_lines(
    closed: Closed, share: Share, lines: Sequence[Line], genesis: Genesis
) -> list[spec.PartLine]:
    """Return a share's parts, each with its formula, numbers and what scaled it."""
    return [
        spec.PartLine(
            source=part.source.name.lower(),
            formula=FORMULAS[part.source],
            inputs=_inputs(part.source, part.count, closed, share, lines, genesis),
            worth_micro=part.worth_micro,
            paid_micro=part.micro,
            why=_why(part.source, closed, genesis),
        )
        for part in share.parts
    ]


def _inputs(
    source: Source,
    count: int,
    closed: Closed,
    share: Share,
    lines: Sequence[Line],
    genesis: Genesis,
) -> str:
    if source is Source.VALIDATOR and share.service is not None:
        service, duty = share.service, share.service.duty
        latency = service.latency_ms
        return (
            f"pool {bly(closed.pool_micro)}, signed {duty.signed} of "
            f"{closed.checkpoints} checkpoints ({duty.owed} owed), uptime "
            f"{percent(uptime_ppm(duty))} (proposals carried {duty.carried} of "
            f"{duty.due} signatures), latency "
            f"{'unknown' if latency is None else f'at most {latency} ms'}, "
            f"{'no offence' if service.is_faultless else 'an offence'}"
        )
    if source is Source.INFERENCE:
        own = [line for line in lines if line.server == share.account]
        fees = sum(line.fee_micro for line in own)
        return (
            f"base {bly(genesis.setting('expert_base_micro'))}, {count} calls of "
            f"{len(own)} experts, fees {bly(fees)}, alpha {percent(closed.alpha_ppm)}"
        )
    if source is Source.LEARNING:
        return (
            f"rate {bly(genesis.setting('learning_micro'))} for a million tokens, "
            f"{count} tokens summed over groups, alpha {percent(closed.alpha_ppm)}"
        )
    return f"{count} submissions"


def _why(source: Source, closed: Closed, genesis: Genesis) -> str:
    """Name the stages that scaled a source, from the sums that every node has."""
    worth = {one.source: one.worth_micro for one in closed.sums}
    paid = {one.source: one.micro for one in closed.sums}
    if worth[source] == paid[source]:
        return "paid in full"
    stages = []
    envelope = closed.allowance_micro * genesis.setting("quality_envelope_ppm") // PPM
    judged = sum(worth.get(one, 0) for one in JUDGING)
    after = dict(worth)
    if worth.get(Source.VALIDATOR, 0) > closed.pool_micro:
        after[Source.VALIDATOR] = closed.pool_micro
        if source is Source.VALIDATOR:
            stages.append(f"the pool of {bly(closed.pool_micro)} for all validators")
    if judged > envelope:
        after |= {one: worth.get(one, 0) * envelope // judged for one in JUDGING}
        if source in JUDGING:
            stages.append(f"the envelope of {bly(envelope)} for judging data")
    total = sum(after.values())
    if total > closed.allowance_micro:
        after = {one: m * closed.allowance_micro // total for one, m in after.items()}
        stages.append(f"its part of the day's budget, {bly(closed.allowance_micro)}")
    if paid[source] + len(worth) + closed.recipients < after[source]:
        stages.append(
            f"its part of what the year may mint, {bly(closed.mintable_micro)}"
        )
    scale = paid[source] * PPM // worth[source]
    return f"scaled to {percent(scale)} by {' and '.join(stages) or 'rounding'}"


def answered(account: bytes, lines: Sequence[Line]) -> list[spec.AnsweredLine]:
    """Return the experts that an account answered with."""
    calls: dict[tuple[bytes, int], int] = {}
    for line in lines:
        expert = line.model, line.group
        calls[expert] = calls.get(expert, 0) + line.calls
    return [
        spec.AnsweredLine(
            model=line.model,
            group=line.group,
            calls=line.calls,
            expert_calls=calls[line.model, line.group],
            response_ms=line.waited_ms // line.calls,
            quality_ppm=line.quality // line.calls,
            fee_micro=line.fee_micro,
            formula_micro=line.micro,
        )
        for line in lines
        if line.server == account
    ]


def state_of(share: Share, now_ms: int, genesis: Genesis) -> str:
    """Say what became of a share since."""
    if not share.due_ms:
        least = genesis.setting("payout_minimum_micro")
        return f"waited, until the account had {bly(least)} together"
    day = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(share.due_ms / 1000))
    if share.due_ms > now_ms:
        return f"can be slashed until {day}, free from then on"
    return f"free since {day}"


def bly(micro: int) -> str:
    """Return an amount for people."""
    whole, rest = divmod(micro, MICRO)
    return f"{whole}.{rest:06d}".rstrip("0").rstrip(".") + " BLY"


def percent(ppm: int) -> str:
    """Return a share for people."""
    return f"{ppm / 10_000:g} %"
