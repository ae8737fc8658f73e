"""What state remembers of epochs that are over: who was rewarded how much, and why.

Written once, by the distributor, at an epoch's end. A statement's shares go after a
week's epochs, its sums after a month's; lifetime totals stay.
"""

from __future__ import annotations

import enum
from typing import Annotated

from blyan_proto.codec import U16, U32, U64, Size, message
from blyan_proto.constants import MAX_VALIDATORS
from blyan_proto.types import Account, BlockId, PublicKey
from blyand.rules.table import Table
from blyand.rules.view import Overlay

SUMS_KEPT = 768  # epochs: more than 30 days of hours
SHARES_KEPT = 168  # epochs: as long as rewards of hourly epochs vest
MAX_RECIPIENTS = 65_536
MAX_LINES = 8_192


class Source(enum.IntEnum):
    """What a reward is for (REWARD-04)."""

    VALIDATOR = 0  # signing checkpoints
    INFERENCE = 1  # answering with experts
    LEARNING = 2  # deltas in tile updates
    VALIDATION = 3  # judging what others submitted
    DATASET = 4  # data that made a model better


@message
class Duty:
    """A validator in one epoch: what it owed and what it did (VAL-05)."""

    key: PublicKey
    account: Account
    owed: U32  # checkpoints that it was to sign
    signed: U32  # of them whose successor carries its signature
    proposed: U32  # checkpoints that it proposed first
    due: U32  # signatures that those could carry
    carried: U32  # signatures that they did carry


@message
class Duties:
    """All validators of the running epoch."""

    duties: Annotated[tuple[Duty, ...], Size(0, 16 * MAX_VALIDATORS)]  # by key


@message
class Service:
    """What a validator's part was computed from."""

    duty: Duty
    latency_ms: U32 | None  # upper bound of its class; none: nobody reported
    is_faultless: bool


@message
class Line:
    """One expert on one server in one epoch (REWARD-02), paid for by others."""

    model: BlockId
    group: U16
    server: Account
    calls: U64
    waited_ms: U64  # sum over the calls
    quality: U64  # sum of the payers' verdicts over the calls, ppm
    fee_micro: U64  # what its payers left with the network
    last_ms: U64  # chain time of the last one
    micro: U64 = 0  # what the formula gives; 0 until the epoch is over


@message
class Part:
    """What one account gets from one source."""

    source: Source
    count: U64  # checkpoints signed, calls answered, tokens learned from, submissions
    worth_micro: U64  # by the source's formula
    micro: U64  # after pools and budgets


@message
class Share:
    """All that one account got in one epoch."""

    account: Account
    parts: Annotated[tuple[Part, ...], Size(1, len(Source))]  # ascending by source
    service: Service | None = None
    due_ms: U64 = 0  # when it, with what waited, becomes free; 0: it waits too

    @property
    def micro(self) -> int:
        """The sum of its parts."""
        return sum(part.micro for part in self.parts)


@message
class Shares:
    """Who got what in one epoch, and the lines that expert rewards came from."""

    shares: Annotated[tuple[Share, ...], Size(0, MAX_RECIPIENTS)]  # by account
    lines: Annotated[tuple[Line, ...], Size(0, MAX_LINES)]  # by model, group, server


@message
class Sum:
    """One source in one epoch."""

    source: Source
    recipients: U32
    worth_micro: U64
    micro: U64


@message
class Closed:
    """An epoch that is over, in sums."""

    number: U64
    began_ms: U64
    ended_ms: U64
    first_height: U64
    last_height: U64
    checkpoints: U32
    pool_micro: U64  # most for all validators
    allowance_micro: U64  # its part of the day's budget
    mintable_micro: U64  # its part of what the year may issue
    issued_micro: U64  # new money among what was paid
    alpha_ppm: U32  # inference's share; learning has the rest
    recipients: U32
    sums: Annotated[tuple[Sum, ...], Size(0, len(Source))]

    @property
    def micro(self) -> int:
        """All that it paid."""
        return sum(one.micro for one in self.sums)


@message
class Earned:
    """What an account was ever rewarded, and what waits for the minimum payout."""

    account: Account
    micro: Annotated[tuple[U64, ...], Size(len(Source), len(Source))]  # by source
    waiting_micro: U64  # below the minimum: no day is set on which it vests
    epochs: U32  # in which it got something
    last_epoch: U64

    @property
    def total_micro(self) -> int:
        """The sum over all sources."""
        return sum(self.micro)


CLOSED = Table(b"closed", Closed)  # epoch
SHARES = Table(b"shares", Shares)  # epoch
EARNED = Table(b"earned", Earned)  # account


def write(view: Overlay, closed: Closed, shares: Shares) -> None:
    """Keep what an epoch came to, and let go of what is too old."""
    CLOSED.put(view, closed, closed.number)
    SHARES.put(view, shares, closed.number)
    if closed.number >= SUMS_KEPT:
        CLOSED.remove(view, closed.number - SUMS_KEPT)
    if closed.number >= SHARES_KEPT:
        SHARES.remove(view, closed.number - SHARES_KEPT)
