"""Money locked for priority (TOKEN-04): it cannot be spent, and comes free with a delay.

A stake is no bond: it is not slashed and gives no vote. What a queue may read is
`priority`; it grows with the logarithm, so that money helps and does not rule.
"""

from __future__ import annotations

from blyan_proto.block.block import Block
from blyan_proto.block.ledger import Stake
from blyan_proto.genesis import Genesis
from blyand.rules.economy.book import MICRO, Purse, amount, move
from blyand.rules.economy.due import Due, Task, schedule
from blyand.rules.economy.once import spend_key
from blyand.rules.verdict import Reject
from blyand.rules.view import Overlay, View


def stake(
    view: Overlay, block: Block, payload: Stake, genesis: Genesis, now_ms: int
) -> None:
    """Lock, or begin to unlock, some of the author's money."""
    account = block.header.account
    spend_key(view, block, payload, now_ms, genesis.setting("idempotency_span_ms"))
    free, staked = (account, Purse.FREE), (account, Purse.STAKED)
    if payload.lock_micro > amount(view, account):
        raise Reject("the account owns less than it stakes")
    if payload.unlock_micro > amount(view, account, Purse.STAKED):
        raise Reject("less is staked than would be unlocked")
    if payload.lock_micro:
        move(view, free, staked, payload.lock_micro, "stake")
        return
    leaving = (account, Purse.UNSTAKING)
    move(view, staked, leaving, payload.unlock_micro, "unstake")
    at_ms = now_ms + genesis.setting("stake_delay_ms")
    schedule(view, now_ms, at_ms, Due(Task.STAKE, account, payload.unlock_micro))


def free(view: Overlay, account: bytes, micro: int) -> None:
    """Let an unlocked stake be spent: its delay is over."""
    leaving = (account, Purse.UNSTAKING)
    move(view, leaving, (account, Purse.FREE), micro, "unstaked")


def priority(view: View, account: bytes) -> int:
    """Return an account's weight in queues: 0 without a whole BLY, 1 from one, 2 from
    two, 3 from four, and so on: the bits of its staked BLY."""
    return (amount(view, account, Purse.STAKED) // MICRO).bit_length()
