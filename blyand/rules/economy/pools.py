"""Accounts that nobody has a key for: money that belongs to a purpose (TOKEN-11).

Their addresses are chosen text, so no key is known whose address they are, and only
rules move what they hold. Anybody may pay into them.
"""

from __future__ import annotations

from blyand.rules.economy.book import ISSUE, amount
from blyand.rules.view import View


def _reserved(name: str) -> bytes:
    return f"blyan {name}".encode().ljust(20, b"\0")


VALIDATORS = _reserved("validators")  # what fees leave; paid to validators by the epoch
REWARDS = _reserved("rewards")  # bought or given for rewards of experts and learners
TREASURY = _reserved("treasury")  # what penalties leave; for the network's operation

POOLS = {"validators": VALIDATORS, "rewards": REWARDS, "treasury": TREASURY}
RESERVED = {ISSUE: "issue", **{account: name for name, account in POOLS.items()}}


def pooled(view: View) -> int:
    """Return what all pools hold together, micro-BLY: it does not circulate."""
    return sum(amount(view, account) for account in POOLS.values())
