"""At an epoch's end: what can be paid of what the work is worth, and the payment.

Strategy. Stage by stage, everything that a stage bounds is scaled alike: validators to
their pool, judging data to its envelope, all of it to the epoch's part of the day's
budget, and what no pool pays for to its part of what the year may issue. What is left is
moved or issued to UNCLAIMED, once: the same stroke opens the next epoch (REWARD-04, 08,
HZ-65).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from blyan_proto.codec import U32, U64, message
from blyan_proto.constants import PPM
from blyan_proto.genesis import Genesis
from blyand.rules.economy import claims, pools, reward, supply, usage, vesting
from blyand.rules.economy.book import Purse, amount, move
from blyand.rules.economy.epoch import Epoch
from blyand.rules.economy.statement import (
    EARNED,
    Closed,
    Earned,
    Part,
    Share,
    Shares,
    Source,
    Sum,
    write,
)
from blyand.rules.economy.work import JUDGING, Work, measure
from blyand.rules.table import Table
from blyand.rules.view import Overlay, View

DAY_MS = 86_400_000
_MOST = 2**63  # what a sum can say; only a strange genesis comes near


@message
class Course:
    """What one epoch hands on to the next."""

    day: U64  # of chain time, since 1970
    paid_micro: U64  # in rewards, on that day
    inference_ppm: U32  # inference's share of demand, smoothed (REWARD-03)


COURSE = Table(b"course", Course)  # one record


@dataclass(frozen=True)
class Reckoning:
    """What an epoch comes to if it ends now: a pure reading of state."""

    closed: Closed
    shares: Shares
    course: Course
    funds: Mapping[bytes, int]  # pool -> what it pays


def reckon(
    view: View, genesis: Genesis, epoch: Epoch, height: int, time_ms: int, room: int
) -> Reckoning:
    """Return what the epoch pays; `room` is what may still be issued this year."""
    known = COURSE.get(view) or Course(0, 0, PPM // 2)
    day = time_ms // DAY_MS
    spent = known.paid_micro if known.day == day else 0
    span_ms = genesis.setting("epoch_span_ms")
    left = max(0, genesis.setting("reward_budget_micro") - spent)
    allowance = reward.allowance(left, time_ms, (day + 1) * DAY_MS, span_ms)
    mintable = reward.allowance(room, time_ms, supply.year_end_ms(view), span_ms)
    work = measure(view, genesis, epoch, time_ms, known.inference_ppm)
    paid, funds = _payable(view, genesis, work, allowance, mintable)
    shares = _shares(work, paid)
    sums = _sums(shares)
    total = sum(one.micro for one in sums)
    closed = Closed(
        number=epoch.number,
        began_ms=epoch.began_ms,
        ended_ms=time_ms,
        first_height=epoch.first_height,
        last_height=height,
        checkpoints=epoch.checkpoints,
        pool_micro=genesis.setting("validator_pool_micro"),
        allowance_micro=allowance,
        mintable_micro=mintable,
        issued_micro=total - sum(funds.values()),
        alpha_ppm=work.alpha_ppm,
        recipients=len(shares),
        sums=sums,
    )
    course = Course(day, spent + total, work.inference_ppm)
    return Reckoning(closed, Shares(shares, work.lines), course, funds)


def distribute(
    view: Overlay, genesis: Genesis, epoch: Epoch, height: int, time_ms: int
) -> None:
    """Pay what the epoch that ends now came to, and begin to count anew."""
    room = supply.room(view, time_ms)
    reckoned = reckon(view, genesis, epoch, height, time_ms, room)
    left = dict(reckoned.funds)
    least = genesis.setting("payout_minimum_micro")
    due_ms = time_ms + genesis.setting("vesting_span_ms")
    shares, payouts = [], []
    for share in reckoned.shares.shares:
        for part in share.parts:
            _pay(view, share.account, part, left, time_ms)
        payable = _remember(view, share, epoch.number, least)
        if payable:
            payouts.append(vesting.Payout(share.account, payable))
        shares.append(replace(share, due_ms=due_ms if payable else 0))
    vesting.set_due(view, epoch.number, due_ms, tuple(payouts))
    write(view, reckoned.closed, replace(reckoned.shares, shares=tuple(shares)))
    COURSE.put(view, reckoned.course)
    usage.forget(view, reckoned.shares.lines)
    claims.forget(view)


Amounts = Mapping[Source, Mapping[bytes, int]]  # by account, micro-BLY


def _payable(
    view: View, genesis: Genesis, work: Work, allowance: int, mintable: int
) -> tuple[Amounts, dict[bytes, int]]:
    """Return what can be paid, and what each pool pays of it; the rest is issued."""
    paid: Amounts = {
        source: {account: piece.micro for account, piece in of.items()}
        for source, of in work.pieces.items()
    }
    paid = _within(paid, {Source.VALIDATOR}, genesis.setting("validator_pool_micro"))
    envelope = allowance * genesis.setting("quality_envelope_ppm") // PPM  # REWARD-07
    paid = _within(paid, JUDGING, envelope)
    paid = _within(paid, paid, allowance)
    sides = (
        (pools.VALIDATORS, {Source.VALIDATOR}),
        (pools.REWARDS, set(Source) - {Source.VALIDATOR}),
    )
    wanted = [_total(paid, sources) for _, sources in sides]
    held = [min(want, amount(view, pool)) for want, (pool, _) in zip(wanted, sides)]
    minted = reward.scale([w - h for w, h in zip(wanted, held)], mintable)
    funds = {}
    for (pool, sources), own, new in zip(sides, held, minted):
        paid = _within(paid, sources, own + new)
        funds[pool] = min(own, _total(paid, sources))
    return paid, funds


def _within(amounts: Amounts, sources: Collection[Source], limit: int) -> Amounts:
    """Scale these sources together to a limit; leave the others as they are."""
    places = [
        (source, account)
        for source in sorted(sources)
        for account in sorted(amounts[source])
    ]
    scaled = reward.scale([amounts[s][a] for s, a in places], limit)
    result = {source: dict(of) for source, of in amounts.items()}
    for (source, account), micro in zip(places, scaled):
        result[source][account] = micro
    return result


def _total(amounts: Amounts, sources: Collection[Source]) -> int:
    return sum(sum(amounts[source].values()) for source in sources)


def _shares(work: Work, paid: Amounts) -> tuple[Share, ...]:
    """Return who gets what, by account; whose work is worth nothing gets no share."""
    parts: dict[bytes, list[Part]] = {}
    for source in Source:
        for account, piece in work.pieces[source].items():
            if piece.micro:
                micro = paid[source][account]
                part = Part(source, piece.count, piece.micro, micro)
                parts.setdefault(account, []).append(part)
    return tuple(
        Share(account, tuple(parts[account]), work.services.get(account))
        for account in sorted(parts)
    )


def _sums(shares: Sequence[Share]) -> tuple[Sum, ...]:
    parts = [part for share in shares for part in share.parts]
    sums = []
    for source in Source:
        of = [part for part in parts if part.source is source]
        if of:
            worth = min(_MOST, sum(part.worth_micro for part in of))
            sums.append(Sum(source, len(of), worth, sum(part.micro for part in of)))
    return tuple(sums)


def _pay(
    view: Overlay, account: bytes, part: Part, left: dict[bytes, int], time_ms: int
) -> None:
    """Pay one part out of its pool while there is something left, else by issuing."""
    is_validator = part.source is Source.VALIDATOR
    pool = pools.VALIDATORS if is_validator else pools.REWARDS
    target = (account, Purse.UNCLAIMED)
    why = f"reward {part.source.name.lower()}"
    held = min(part.micro, left[pool])
    left[pool] -= held
    if held:
        move(view, (pool, Purse.FREE), target, held, why)
    if part.micro > held:
        supply.issue(view, target, part.micro - held, why, time_ms)


def _remember(view: Overlay, share: Share, epoch: int, least: int) -> int:
    """Add to what the account ever earned; return what it can be paid now, else 0."""
    known = EARNED.get(view, share.account)
    known = known or Earned(share.account, (0,) * len(Source), 0, 0, epoch)
    by_source = list(known.micro)
    for part in share.parts:
        by_source[part.source] += part.micro
    waiting = known.waiting_micro + share.micro
    payable = waiting if waiting >= max(1, least) else 0
    EARNED.put(
        view,
        replace(
            known,
            micro=tuple(by_source),
            waiting_micro=waiting - payable,
            epochs=known.epochs + bool(share.micro),
            last_epoch=epoch,
        ),
        share.account,
    )
    return payable
