"""At an epoch's end: what everybody earned, what can be paid of it, and the payment.

Strategy. Each source says what its work was worth (`gather`). Then, in this order, all
of a stage scaled alike: validators to their pool, judging data to its envelope,
everything to the epoch's part of the day's budget, and what no pool pays for to its
part of what the year may issue. What is left is moved or issued to UNCLAIMED, once: the
same stroke opens the next epoch (REWARD-04, 08, HZ-65).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from blyan_proto.codec import U32, U64, message
from blyan_proto.constants import PPM
from blyan_proto.genesis import Genesis
from blyand.rules.economy import claims, duty, pools, reward, supply, usage, vesting
from blyand.rules.economy.book import Purse, amount, move
from blyand.rules.economy.epoch import Epoch
from blyand.rules.economy.statement import (
    EARNED,
    Closed,
    Earned,
    Line,
    Part,
    Service,
    Share,
    Shares,
    Source,
    Sum,
    write,
)
from blyand.rules.table import Table
from blyand.rules.view import Overlay, View

DAY_MS = 86_400_000
JUDGING = (Source.VALIDATION, Source.DATASET)  # bounded by the envelope (REWARD-07)


@message
class Course:
    """What one epoch hands on to the next."""

    day: U64  # of chain time, since 1970
    paid_micro: U64  # in rewards, on that day
    inference_ppm: U32  # inference's share of demand, smoothed (REWARD-03)


COURSE = Table(b"course", Course)  # one record


@dataclass(frozen=True)
class Reckoning:
    """What an epoch came to before anything is paid: a pure reading of state."""

    closed: Closed
    shares: Shares
    course: Course
    funds: Mapping[bytes, int] = field(default_factory=dict)  # pool -> what it pays


def course(view: View) -> Course:
    """Return what the epochs so far handed on."""
    return COURSE.get(view) or Course(0, 0, PPM // 2)


def gather(
    view: View, genesis: Genesis, epoch: Epoch, height: int, time_ms: int, room: int
) -> Reckoning:
    """Return what the epoch pays when it ends now; `room` may be issued this year."""
    known, day = course(view), time_ms // DAY_MS
    spent = known.paid_micro if known.day == day else 0
    span_ms = genesis.setting("epoch_span_ms")
    allowance = reward.allowance(
        max(0, genesis.setting("reward_budget_micro") - spent),
        time_ms,
        (day + 1) * DAY_MS,
        span_ms,
    )
    mintable = reward.allowance(room, time_ms, supply.year_end_ms(view), span_ms)
    lines = usage.lines(view, genesis.setting("expert_base_micro"), time_ms)
    learned = {one.account: one.micro for one in claims.of(view, Source.LEARNING)}
    inference_ppm = reward.smoothed(
        known.inference_ppm,
        sum(usage.earned(line, PPM) for line in lines),
        sum(learned.values()),
    )
    alpha, beta = reward.shares(inference_ppm)
    pool = genesis.setting("validator_pool_micro")
    services = _services(view, epoch)
    worth = {
        Source.VALIDATOR: _validators(services, epoch, pool),
        Source.INFERENCE: _servers(lines, alpha),
        Source.LEARNING: {who: micro * beta // PPM for who, micro in learned.items()},
        **{
            source: {one.account: one.micro for one in claims.of(view, source)}
            for source in JUDGING
        },
    }
    paid = _within(worth, {Source.VALIDATOR}, pool)
    envelope = allowance * genesis.setting("quality_envelope_ppm") // PPM
    paid = _within(paid, set(JUDGING), envelope)
    paid = _within(paid, set(Source), allowance)
    paid, funds = _funded(view, paid, mintable)
    shares = _shares(worth, paid, services)
    sums = _sums(shares)
    total = sum(one.micro for one in sums)
    closed = Closed(
        number=epoch.number,
        began_ms=epoch.began_ms,
        ended_ms=time_ms,
        first_height=epoch.first_height,
        last_height=height,
        checkpoints=epoch.checkpoints,
        pool_micro=pool,
        allowance_micro=allowance,
        mintable_micro=mintable,
        issued_micro=total - sum(funds.values()),
        alpha_ppm=alpha,
        recipients=len(shares),
        sums=sums,
    )
    return Reckoning(
        closed,
        Shares(shares, tuple(lines)),
        Course(day, spent + total, inference_ppm),
        funds,
    )


def distribute(
    view: Overlay, genesis: Genesis, epoch: Epoch, height: int, time_ms: int
) -> None:
    """Pay what the epoch that ends now came to, and begin to count anew."""
    room = supply.room(view, time_ms)
    reckoned = gather(view, genesis, epoch, height, time_ms, room)
    left = dict(reckoned.funds)
    payouts = []
    least = genesis.setting("payout_minimum_micro")
    for share in reckoned.shares.shares:
        for part in share.parts:
            _pay(view, share.account, part, left, time_ms)
        waiting = _remember(view, share, epoch.number, least)
        if waiting:
            payouts.append(vesting.Payout(share.account, waiting))
    due_ms = time_ms + genesis.setting("vesting_span_ms")
    vesting.set_due(view, epoch.number, due_ms, tuple(payouts))
    write(view, reckoned.closed, reckoned.shares)
    COURSE.put(view, reckoned.course)
    usage.forget(view)
    claims.forget(view)


Amounts = Mapping[Source, Mapping[bytes, int]]  # account -> micro-BLY
_MOST = 2**63  # what a record can say; only a strange genesis comes near


def _services(view: View, epoch: Epoch) -> dict[bytes, Service]:
    return {
        one.key: Service(one, None, True) for one in duty.running(view) if one.signed
    }


def _validators(
    services: Mapping[bytes, Service], epoch: Epoch, pool: int
) -> dict[bytes, int]:
    found: dict[bytes, int] = {}
    for service in services.values():
        done, latency = service.duty, service.latency_ms
        micro = reward.validator(
            pool,
            done.signed,
            epoch.checkpoints,
            duty.uptime_ppm(done),
            is_fast=latency is not None and latency <= reward.FAST_MS,
            is_faultless=service.is_faultless,
        )
        found[done.account] = found.get(done.account, 0) + micro
    return found


def _servers(lines: Sequence[Line], alpha_ppm: int) -> dict[bytes, int]:
    found: dict[bytes, int] = {}
    for line in lines:
        micro = usage.earned(line, alpha_ppm)
        found[line.server] = found.get(line.server, 0) + micro
    return found


def _within(amounts: Amounts, sources: set[Source], limit: int) -> Amounts:
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


def _funded(
    view: View, amounts: Amounts, mintable: int
) -> tuple[Amounts, dict[bytes, int]]:
    """Return what can be paid, and what each pool pays of it; the rest is issued."""
    sides = (
        (pools.VALIDATORS, {Source.VALIDATOR}),
        (pools.REWARDS, set(Source) - {Source.VALIDATOR}),
    )
    wanted = [_total(amounts, sources) for _, sources in sides]
    held = [min(want, amount(view, pool)) for want, (pool, _) in zip(wanted, sides)]
    minted = reward.scale([w - h for w, h in zip(wanted, held)], mintable)
    funds = {}
    for (pool, sources), own, new in zip(sides, held, minted):
        amounts = _within(amounts, sources, own + new)
        funds[pool] = min(own, _total(amounts, sources))
    return amounts, funds


def _total(amounts: Amounts, sources: set[Source]) -> int:
    return sum(sum(amounts[source].values()) for source in sources)


def _shares(
    worth: Amounts, paid: Amounts, services: Mapping[bytes, Service]
) -> tuple[Share, ...]:
    served = {service.duty.account: service for service in services.values()}
    accounts = sorted(
        {who for of in worth.values() for who, micro in of.items() if micro}
    )
    return tuple(
        Share(
            account,
            tuple(
                Part(source, worth[source][account], paid[source][account])
                for source in Source
                if account in worth[source]
            ),
            served.get(account),
        )
        for account in accounts
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
