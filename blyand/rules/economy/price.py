"""What money and tokens cost: exact integers, no state.

A US cent buys `cent_price_micro` of the genesis (10 BLY; TOKEN-05). Who buys for at
least 100 dollars pays a tenth less, from 1000 a fifth (TOKEN-06).
"""

from __future__ import annotations

from blyan_proto.constants import PPM

BULK_PPM = ((100_000, 200_000), (10_000, 100_000))  # from how many cents, what off


def micro_of_cents(cents: int, cent_price_micro: int) -> int:
    """Return what a list price in cents buys."""
    return cents * cent_price_micro


def discount_ppm(cents: int) -> int:
    """Return what is off a purchase of this list price."""
    return next((off for least, off in BULK_PPM if cents >= least), 0)


def due_cents(cents: int) -> int:
    """Return what a purchase of this list price costs; a fraction of a cent counts."""
    return -(-cents * (PPM - discount_ppm(cents)) // PPM)


def micro_of_tokens(tokens: int, token_price_micro: int) -> int:
    """Return the price of generated tokens."""
    return tokens * token_price_micro


def is_as_quoted(tokens: int, quoted: int) -> bool:
    """True when what was delivered is within a tenth of what was quoted (TOKEN-10)."""
    return 10 * abs(tokens - quoted) <= quoted
