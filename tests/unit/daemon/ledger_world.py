"""A world in which people pay each other for services."""

from __future__ import annotations

from typing import Any

from blyan_proto.block.economy import Transfer
from blyan_proto.block.ledger import (
    Capture,
    DeliveryStatement,
    Release,
    Reserve,
    Reverse,
    Stake,
)
from blyan_proto.genesis import Setting
from blyan_proto.signing import Purpose, SigningKey
from blyan_proto.types import Account
from blyand.rules.economy.book import BALANCES, Purse, amount, supply
from blyand.rules.economy.escrow import ESCROWS, Escrow
from tests.unit.daemon.chain_world import World

SPANS = {  # short ones, so that a test passes through all of them
    "escrow_span_ms": 60_000,
    "idempotency_span_ms": 30_000,
    "reversal_span_ms": 20_000,
    "stake_delay_ms": 10_000,
}


def named(**settings: int) -> tuple[Setting, ...]:
    """Return settings as a genesis holds them."""
    return tuple(Setting(name, settings[name]) for name in sorted(settings))


class LedgerWorld(World):
    """A world with short spans."""

    def __init__(self, nodes: int = 3, **settings: int) -> None:
        super().__init__(nodes, settings=named(**SPANS | settings))

    def pay(self, to: SigningKey, micro: int, fee: int = 0, key: bytes = b"") -> Any:
        return Transfer(1, to.account, micro, fee, "", key)

    def reserve(self, to: SigningKey, micro: int, **changed: Any) -> Reserve:
        fields: dict[str, Any] = dict(
            version=1,
            to=to.account,
            amount_micro=micro,
            fee_micro=0,
            quote=None,
            quoted_until_ms=0,
            expires_ms=self.time_ms + 30_000,
        )
        return Reserve(**fields | changed)

    def delivery(self, reserve: bytes, micro: int, **changed: Any) -> DeliveryStatement:
        fields: dict[str, Any] = dict(
            version=1,
            reserve=reserve,
            model=None,
            usage=(),
            tokens=10,
            response_ms=1,
            quality_ppm=0,
            amount_micro=micro,
        )
        return DeliveryStatement(**fields | changed)

    def capture(self, payer: SigningKey, statement: DeliveryStatement) -> Capture:
        signature = payer.sign(Purpose.DELIVERY, self.genesis.id, statement)
        return Capture(1, statement, payer.public, signature)

    def release(self, reserve: bytes) -> Release:
        return Release(1, reserve)

    def reverse(self, reserve: bytes, micro: int, key: bytes = b"") -> Reverse:
        return Reverse(1, reserve, micro, key)

    def stake(self, lock: int = 0, unlock: int = 0) -> Stake:
        return Stake(1, lock, unlock)

    def refused(self, payload: Any, key: SigningKey | None = None) -> str:
        """Execute a payload that must not take effect; return why."""
        (error,) = self.errors(self.block(payload, key))
        assert error is not None
        return error

    def wait(self, span_ms: int) -> None:
        """Let chain time pass, in one empty checkpoint."""
        self.checkpoint(step_ms=span_ms)

    def has(self, key: SigningKey, purse: Purse = Purse.FREE) -> int:
        return amount(self.view, key.account, purse)

    def owns(self, account: Account) -> int:
        """Return what is in all purses of an account."""
        return sum(amount(self.view, account, purse) for purse in Purse)

    def escrow(self, id: bytes) -> Escrow:
        found = ESCROWS.get(self.view, id)
        assert found is not None
        return found

    def is_balanced(self) -> bool:
        """True when all purses together hold what was issued and not burnt."""
        purses = sum(balance.micro for balance in BALANCES.scan(self.view))
        return purses == supply(self.view).micro
