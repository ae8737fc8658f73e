"""Answers about rewards: what epochs paid, to whom, and totals over time.

Everything but proofs is read from executed state, so every node answers the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from blyan_proto.constants import PPM
from blyan_proto.errors import DecodeError
from blyan_proto.genesis import Genesis
from blyan_proto.rpc import reward as spec
from blyan_proto.rpc.errors import (
    EPOCH_UNKNOWN,
    RECIPIENT_INVALID,
    RECIPIENT_UNKNOWN,
    RpcError,
)
from blyand.compute import Threads
from blyand.net.identity import public_key_of
from blyand.rpc.accounts import account_called
from blyand.rpc.bind import Answers
from blyand.rpc.origins import Origins
from blyand.rpc.reasons import answered, part_lines, state_of
from blyand.rules.economy import epoch as epochs
from blyand.rules.economy import supply
from blyand.rules.economy.book import Purse, amount
from blyand.rules.economy.distribution import DAY_MS, Reckoning, reckon
from blyand.rules.economy.rotation import owner_of
from blyand.rules.economy.statement import (
    CLOSED,
    EARNED,
    SHARES,
    SHARES_KEPT,
    Closed,
    Earned,
    Share,
    Shares,
    Source,
)
from blyand.rules.records import CLOCK
from blyand.rules.view import Overlay, View

WINDOWS = (("24h", DAY_MS), ("7d", 7 * DAY_MS), ("30d", 30 * DAY_MS))
CHART_EPOCHS = 24
STEADY_EPOCHS = 168


def bind(
    answers: Answers,
    *,
    genesis: Genesis,
    view: Callable[[], View],
    account: bytes,
    origins: Origins,
    lane: Threads,
) -> None:
    """Bind reward.*.

    `view` gives the state as of one checkpoint; `account` is this node's; `lane` reads
    the database.
    """

    @answers(spec.epoch)
    async def epoch(params: spec.GetEpoch) -> spec.Epoch:
        state = view()
        number = params.number
        if number is None:
            number = max(0, epochs.running(state).number - 1)
        closed, shares = closed_epoch(state, number)
        return epoch_of(closed, shares.shares, params.limit, is_over=True)

    @answers(spec.preview)
    async def preview(params: spec.Preview) -> spec.Epoch:
        reckoned = await lane.run(reckoned_now, view(), genesis)
        shares = reckoned.shares.shares
        return epoch_of(reckoned.closed, shares, params.limit, is_over=False)

    @answers(spec.explain)
    async def explain(params: spec.Explain) -> spec.Explained:
        state = view()
        who = recipient_called(state, params.who, account)
        closed, shares = closed_epoch(state, params.epoch)
        found = [share for share in shares.shares if share.account == who]
        if not found:
            text = f"account {who.hex()} got nothing in epoch {params.epoch}"
            raise RpcError(RECIPIENT_UNKNOWN, text)
        proofs, more, complete = await lane.run(
            origins.of, closed, found[0], params.limit
        )
        return spec.Explained(
            account=who,
            epoch=closed.number,
            ended_ms=closed.ended_ms,
            first_height=closed.first_height,
            last_height=closed.last_height,
            paid_micro=found[0].micro,
            state=state_of(found[0], clock_of(state)[1], genesis),
            parts=part_lines(closed, found[0], shares.lines, genesis),
            answered=answered(who, shares.lines),
            proofs=proofs,
            more_proofs=more,
            proofs_complete=complete,
        )

    @answers(spec.stats)
    async def stats(params: spec.GetStats) -> spec.Stats:
        state = view()
        who = recipient_called(state, params.who, account)
        return await lane.run(stats_of, state, who)

    @answers(spec.leaderboard)
    async def leaderboard(params: spec.GetLeaderboard) -> spec.Leaderboard:
        return await lane.run(leaders, view(), params.limit)


def reckoned_now(view: View, genesis: Genesis) -> Reckoning:
    """Return what the running epoch comes to if it ends at state's time."""
    height, time_ms = clock_of(view)
    room = supply.room(Overlay(view), time_ms)
    return reckon(view, genesis, epochs.running(view), height, time_ms, room)


def clock_of(view: View) -> tuple[int, int]:
    """Return the height and chain time that state is at."""
    clock = CLOCK.get(view)
    assert clock is not None
    return clock.height, clock.time_ms


def closed_epoch(view: View, number: int) -> tuple[Closed, Shares]:
    """Return an epoch that is over, with its shares. RpcError EPOCH_UNKNOWN."""
    running = epochs.running(view).number
    if number >= running:
        before = f"; the newest that is over is {running - 1}" if running else ""
        text = f"epoch {number} is not over yet{before}; `blyanctl reward preview`"
        raise RpcError(EPOCH_UNKNOWN, f"{text} shows the running one")
    closed, shares = CLOSED.get(view, number), SHARES.get(view, number)
    if closed is None or shares is None:
        text = (
            f"state keeps the shares of the last {SHARES_KEPT} epochs, not of {number}"
        )
        raise RpcError(EPOCH_UNKNOWN, text)
    return closed, shares


def recipient_called(view: View, who: str, own: bytes) -> bytes:
    """Return the account that a caller names, or whose peer id it is.

    RpcError RECIPIENT_INVALID.
    """
    try:
        owner = owner_of(view, public_key_of(who))
    except DecodeError:  # no peer id
        try:
            return account_called(who, own)
        except RpcError:
            owner = None
    if owner is None:
        text = f"{who[:80]!r} is neither a peer id nor an account of 40 hex digits"
        raise RpcError(RECIPIENT_INVALID, text)
    return owner


def epoch_of(
    closed: Closed, shares: tuple[Share, ...], limit: int, *, is_over: bool
) -> spec.Epoch:
    """Return an epoch as callers see it."""
    worth = sum(one.worth_micro for one in closed.sums)
    ranked = sorted(shares, key=lambda share: (-share.micro, share.account))
    return spec.Epoch(
        number=closed.number,
        is_over=is_over,
        began_ms=closed.began_ms,
        ended_ms=closed.ended_ms,
        first_height=closed.first_height,
        last_height=closed.last_height,
        checkpoints=closed.checkpoints,
        validator_pool_micro=closed.pool_micro,
        budget_micro=closed.allowance_micro,
        mintable_micro=closed.mintable_micro,
        worth_micro=worth,
        paid_micro=closed.micro,
        issued_micro=closed.issued_micro,
        scale_ppm=ratio_ppm(closed.micro, worth),
        alpha_ppm=closed.alpha_ppm,
        sources=[
            spec.SourceLine(
                source=one.source.name.lower(),
                recipients=one.recipients,
                worth_micro=one.worth_micro,
                paid_micro=one.micro,
            )
            for one in closed.sums
        ],
        recipients=[
            spec.RecipientLine(
                account=share.account,
                worth_micro=sum(part.worth_micro for part in share.parts),
                paid_micro=share.micro,
                weight_ppm=ratio_ppm(share.micro, closed.micro),
            )
            for share in ranked[:limit]
        ],
        more_recipients=max(0, len(ranked) - limit),
    )


def stats_of(view: View, who: bytes) -> spec.Stats:
    """Return what windows and an account come to at state's chain time."""
    now_ms = clock_of(view)[1]
    closed = list(CLOSED.scan(view))
    earned = EARNED.get(view, who) or Earned(who, (0,) * len(Source), 0, 0, 0)
    return spec.Stats(
        now_ms=now_ms,
        windows=[
            _window(view, name, [c for c in closed if c.ended_ms > now_ms - ms], who)
            for name, ms in WINDOWS
        ],
        account=who,
        total_micro=earned.total_micro,
        sources=[
            spec.EarnedLine(source=source.name.lower(), earned_micro=micro)
            for source, micro in zip(Source, earned.micro)
        ],
        waiting_micro=earned.waiting_micro,
        unclaimed_micro=amount(view, who, Purse.UNCLAIMED),
        epochs=earned.epochs,
        chart=[
            spec.Paid(number=c.number, ended_ms=c.ended_ms, paid_micro=c.micro)
            for c in closed[-CHART_EPOCHS:]
        ],
    )


def _window(view: View, name: str, closed: list[Closed], who: bytes) -> spec.WindowLine:
    kept = [SHARES.get(view, one.number) for one in closed]
    mine = sum(
        share.micro
        for shares in kept
        for share in (shares.shares if shares else ())
        if share.account == who
    )
    paid = sum(one.micro for one in closed)
    worth = sum(part.worth_micro for one in closed for part in one.sums)
    return spec.WindowLine(
        window=name,
        epochs=len(closed),
        paid_micro=paid,
        issued_micro=sum(one.issued_micro for one in closed),
        mine_micro=None if None in kept else mine,
        scale_ppm=ratio_ppm(paid, worth),
    )


def leaders(view: View, limit: int) -> spec.Leaderboard:
    """Return who was rewarded most; equal totals go by account (REWARD-10)."""
    ranked = sorted(
        (one for one in EARNED.scan(view) if one.total_micro),
        key=lambda one: (-one.total_micro, one.account),
    )
    best = {
        source: min(
            (one for one in ranked if one.micro[source]),
            key=lambda one: (-one.micro[source], one.account),
            default=None,
        )
        for source in Source
    }
    return spec.Leaderboard(
        total_micro=sum(one.total_micro for one in ranked),
        contributors=len(ranked),
        leaders=[
            spec.LeaderLine(
                rank=rank,
                account=one.account,
                total_micro=one.total_micro,
                epochs=one.epochs,
                last_epoch=one.last_epoch,
                badges=list(_badges(one, best)),
            )
            for rank, one in enumerate(ranked[:limit], start=1)
        ],
    )


def _badges(one: Earned, best: dict[Source, Earned | None]) -> Iterable[str]:
    for source, leader in best.items():
        if leader is one:
            yield f"first in {source.name.lower()}"
    if one.epochs >= STEADY_EPOCHS:
        yield f"{STEADY_EPOCHS} epochs"


def ratio_ppm(part: int, whole: int) -> int:
    """Return a share; the whole where there is nothing."""
    return part * PPM // whole if whole else PPM
