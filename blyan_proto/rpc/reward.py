"""Rewards: what an epoch paid, to whom, why, and where the numbers come from."""

from __future__ import annotations

from blyan_proto.rpc.errors import EPOCH_UNKNOWN, RECIPIENT_INVALID, RECIPIENT_UNKNOWN
from blyan_proto.rpc.spec import Address, Hex, Id, Method, arg, declare, record

SOURCES = "validator, inference, learning, validation or dataset"
WHO_HELP = "peer id, account in hex, or me"
EPOCH_HELP = "number of the epoch"


@record
class SourceLine:
    """What one kind of work came to."""

    source: str = arg(SOURCES)
    recipients: int = arg("accounts that did it")
    worth_micro: int = arg("what its formula gives, micro-BLY")
    paid_micro: int = arg("what was paid of it, micro-BLY")


@record
class RecipientLine:
    """What one account got."""

    account: Address = arg("account")
    worth_micro: int = arg("what its work is worth by the formulas, micro-BLY")
    paid_micro: int = arg("what was paid of it, micro-BLY")
    weight_ppm: int = arg("its part of all that was paid")


@record
class Epoch:
    """An epoch in sums."""

    number: int = arg(EPOCH_HELP)
    is_over: bool = arg("false: the running one, as if it ended now")
    began_ms: int = arg("chain time at which it began, Unix milliseconds")
    ended_ms: int = arg("chain time at which it ended, Unix milliseconds")
    first_height: int = arg("its first checkpoint")
    last_height: int = arg("its last checkpoint")
    checkpoints: int = arg("checkpoints in it")
    validator_pool_micro: int = arg("most for all validators, micro-BLY")
    budget_micro: int = arg("its part of the day's budget, micro-BLY")
    mintable_micro: int = arg("its part of what the year may mint, micro-BLY")
    worth_micro: int = arg("what all its work is worth by the formulas, micro-BLY")
    paid_micro: int = arg("what was paid of it, micro-BLY")
    issued_micro: int = arg("new money among it; fees paid the rest, micro-BLY")
    scale_ppm: int = arg("paid of what the work is worth; below 100 %: scaled down")
    alpha_ppm: int = arg("weight of inference; learning has the rest")
    sources: list[SourceLine] = arg("by kind of work")
    recipients: list[RecipientLine] = arg("who got most first, at most the limit")
    more_recipients: int = arg("recipients beyond the limit")


@record
class GetEpoch:
    """Show what an epoch that is over paid, and how its budgets scaled it."""

    number: int | None = arg(
        "number of the epoch; default: the newest", default=None, low=0, positional=True
    )
    limit: int = arg("recipients listed", default=50, low=0, high=1000)


epoch = declare(
    Method("reward.epoch", GetEpoch, Epoch, errors=(EPOCH_UNKNOWN,), public=True)
)


@record
class Preview:
    """Show what the running epoch would pay if it ended now. Only its end pays."""

    limit: int = arg("recipients listed", default=50, low=0, high=1000)


preview = declare(Method("reward.preview", Preview, Epoch, public=True))


@record
class Explain:
    """Say why an account got what it got in an epoch, down to blocks and signatures."""

    who: str = arg(WHO_HELP, positional=True)
    epoch: int = arg(EPOCH_HELP, low=0, positional=True)
    limit: int = arg("proofs listed for each source", default=20, low=0, high=1000)


@record
class PartLine:
    """One kind of work, by its formula."""

    source: str = arg(SOURCES)
    formula: str = arg("the rule")
    inputs: str = arg("its numbers")
    worth_micro: int = arg("what it gives, micro-BLY")
    paid_micro: int = arg("what was paid of it, micro-BLY")
    why: str = arg("what came between the two")


@record
class AnsweredLine:
    """One expert that the account answered with."""

    model: Id = arg("model block id")
    group: int = arg("group of the model's layout")
    calls: int = arg("calls that others paid for")
    expert_calls: int = arg("calls of that expert on all servers")
    response_ms: int = arg("mean time of an answer, as the payers measured it")
    quality_ppm: int = arg("mean verdict of the payers")
    fee_micro: int = arg("what the payers left with the network, micro-BLY")
    formula_micro: int = arg("what the formula gives, micro-BLY")


@record
class ProofLine:
    """A signed block or vote that the numbers come from."""

    source: str = arg(SOURCES)
    height: int = arg("checkpoint that orders it, or whose signature was carried")
    id: Id = arg("block id; of a vote, the checkpoint it is for")
    author: Hex = arg("key that signed it, or the payment in it")
    signature: Hex = arg("its signature")


@record
class Explained:
    """An account in an epoch."""

    account: Address = arg("account")
    epoch: int = arg(EPOCH_HELP)
    ended_ms: int = arg("chain time at which it ended, Unix milliseconds")
    first_height: int = arg("its first checkpoint")
    last_height: int = arg("its last checkpoint")
    paid_micro: int = arg("all that it got, micro-BLY")
    state: str = arg("what became of it since")
    parts: list[PartLine] = arg("by kind of work")
    answered: list[AnsweredLine] = arg("experts behind the inference part")
    proofs: list[ProofLine] = arg("blocks and votes, the newest first")
    more_proofs: int = arg("proofs beyond the limit")
    proofs_complete: bool = arg("false: this node lacks blocks of that epoch")


explain = declare(
    Method(
        "reward.explain",
        Explain,
        Explained,
        errors=(EPOCH_UNKNOWN, RECIPIENT_INVALID, RECIPIENT_UNKNOWN),
        public=True,
    )
)


@record
class GetStats:
    """Show what was paid in the last day, week and month of chain time."""

    who: str = arg(WHO_HELP, default="me")


@record
class WindowLine:
    """A span of chain time up to now."""

    window: str = arg("24h, 7d or 30d")
    epochs: int = arg("epochs that ended in it")
    paid_micro: int = arg("paid to all, micro-BLY")
    issued_micro: int = arg("new money among it, micro-BLY")
    mine_micro: int | None = arg("paid to the account; null: no longer in state")
    scale_ppm: int = arg("paid of what the work was worth")


@record
class Paid:
    """One epoch of the chart."""

    number: int = arg(EPOCH_HELP)
    ended_ms: int = arg("chain time at which it ended, Unix milliseconds")
    paid_micro: int = arg("paid to all, micro-BLY")


@record
class EarnedLine:
    """What an account ever got for one kind of work."""

    source: str = arg(SOURCES)
    earned_micro: int = arg("micro-BLY")


@record
class Stats:
    """Distribution over time, and one account's totals."""

    now_ms: int = arg("chain time, Unix milliseconds")
    windows: list[WindowLine] = arg("windows")
    account: Address = arg("whose totals these are")
    total_micro: int = arg("what it was ever rewarded, micro-BLY")
    sources: list[EarnedLine] = arg("that by kind of work")
    waiting_micro: int = arg("below the minimum payout, micro-BLY")
    unclaimed_micro: int = arg("not yet free, and can be slashed, micro-BLY")
    epochs: int = arg("epochs in which it got something")
    chart: list[Paid] = arg("the last epochs, the oldest first")


stats = declare(
    Method(
        "reward.stats",
        GetStats,
        Stats,
        errors=(RECIPIENT_INVALID, RECIPIENT_UNKNOWN),
        public=True,
    )
)


@record
class GetLeaderboard:
    """List who was rewarded most, since the genesis."""

    limit: int = arg("accounts listed", default=20, low=1, high=1000)


@record
class LeaderLine:
    """One contributor."""

    rank: int = arg("1 is the first; equal totals go by account")
    account: Address = arg("account")
    total_micro: int = arg("what it was ever rewarded, micro-BLY")
    epochs: int = arg("epochs in which it got something")
    last_epoch: int = arg("the last of them")
    badges: list[str] = arg("what it stands out by")


@record
class Leaderboard:
    """Contributors by what they were rewarded."""

    total_micro: int = arg("rewarded to all, micro-BLY")
    contributors: int = arg("accounts that ever got something")
    leaders: list[LeaderLine] = arg("who got most first")


leaderboard = declare(
    Method("reward.leaderboard", GetLeaderboard, Leaderboard, public=True)
)
