"""Payloads of chain C about money for a service: reserve, capture, release, reverse; stake.
docs/block-format.md section 6.

A payer locks money for a payee (reserve), signs what it received (DeliveryStatement),
and the payee takes its due with that signature (capture). docs/ledger.md
"""

from __future__ import annotations

from typing import Annotated

from blyan_proto.codec import U8, U16, U32, U64, Size, encode, message
from blyan_proto.constants import PPM
from blyan_proto.digest import Domain, digest
from blyan_proto.types import Account, BlockId, Hash, OnceKey, PublicKey, Signature


@message
class QuoteStatement:
    """What a provider offers; purpose "quote". It is no block: it travels by hand."""

    version: U8
    payee: Account
    payer: Account
    model: BlockId | None
    tokens: U32  # that the price is for
    amount_micro: U64  # the most that will be captured
    made_ms: U64  # chain time
    until_ms: U64  # chain time until which it may be authorised
    salt: Hash  # random: two equal offers are two quotes

    @property
    def id(self) -> bytes:
        """What names the quote, and the session about it: 32 bytes."""
        return digest(Domain.QUOTE, encode(self))


@message
class Quote:
    """An offer with its provider's signature."""

    statement: QuoteStatement
    key: PublicKey  # the payee's current one
    signature: Signature


@message
class Reserve:
    """Lock the author's money for a payee until `expires_ms`."""

    version: U8
    to: Account
    amount_micro: U64
    fee_micro: U64
    quote: Hash | None  # id of the quote that it authorises
    quoted_until_ms: U64  # chain time; the quote's. 0 without a quote
    expires_ms: U64  # chain time at which what is not captured goes back
    key: OnceKey = b""


@message
class Usage:
    """How often a group worked for the payer."""

    group: U16
    calls: U32


@message
class DeliveryStatement:
    """What a payer received and agrees to pay; purpose "delivery" (HZ-41)."""

    version: U8
    reserve: BlockId  # pays once: a reserve is captured once
    model: BlockId | None
    usage: Annotated[tuple[Usage, ...], Size(0, 256)]  # ascending by group
    tokens: U32
    response_ms: U32  # mean time of a call, measured by the payer
    quality_ppm: U32  # the payer's verdict, 0 to 1,000,000
    amount_micro: U64

    def __post_init__(self) -> None:
        groups = [usage.group for usage in self.usage]
        if groups != sorted(set(groups)):
            raise ValueError("usage is not ascending and distinct")
        if self.quality_ppm > PPM:
            raise ValueError("a quality above 1")


@message
class Capture:
    """The payee takes what was delivered; the rest goes back to the payer."""

    version: U8
    statement: DeliveryStatement
    payer_key: PublicKey  # the payer's current one
    signature: Signature


@message
class Release:
    """The payee gives a whole reserve back."""

    version: U8
    reserve: BlockId


@message
class Reverse:
    """The payee gives back some of what it captured."""

    version: U8
    reserve: BlockId
    amount_micro: U64
    key: OnceKey = b""


@message
class Stake:
    """Lock the author's money for priority, or begin to unlock some (TOKEN-04)."""

    version: U8
    lock_micro: U64
    unlock_micro: U64
    key: OnceKey = b""

    def __post_init__(self) -> None:
        if bool(self.lock_micro) == bool(self.unlock_micro):
            raise ValueError("a stake block either locks or unlocks")
