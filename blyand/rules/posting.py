"""A posting: one side of a movement of money, as execution tells it to the journal."""

from __future__ import annotations

from typing import NamedTuple


class Posting(NamedTuple):
    """Money came to a purse (micro > 0) or left it; a movement is two of them."""

    account: bytes  # 20 bytes
    purse: int  # blyand.rules.economy.book.Purse
    micro: int  # signed micro-BLY
    why: str  # "transfer", "fee", "bond" …: docs/ledger.md lists them
