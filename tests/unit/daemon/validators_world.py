"""A small network whose validators have bonds, for the rules about them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from blyan_proto.block.economy import KeyRotation, RotationStatement
from blyan_proto.checkpoint import (
    ProposalStatement,
    SignedProposal,
    Vote,
    VoteStage,
    VoteStatement,
)
from blyan_proto.genesis import DEVNET, Balance, Genesis, Parameters, Setting
from blyan_proto.signing import Purpose, SigningKey
from blyan_proto.types import Role
from blyan_proto.validators import Validator
from blyand.rules.chain.validators import predecessors, signers, successors
from blyand.rules.economy.book import MICRO, Purse, amount
from blyand.rules.economy.epoch import running
from tests.unit.daemon.chain_world import World, key, registration, some

HOUR_MS = 3_600_000
RICH_MICRO = 100_000 * MICRO
BOND_MICRO = 10_000 * MICRO
ROLES = int(Role.LEARN | Role.SERVE | Role.VALIDATE)


def tail_of(name: object) -> bytes:
    """Return the end of somebody's hash chain."""
    return some(("tail", name)).randbytes(32)


def rotation_of(genesis: Genesis, account: bytes, new: SigningKey) -> KeyRotation:
    """Return the payload that brings an account to a new key."""
    statement = RotationStatement(1, account, new.public)
    proof = new.sign(Purpose.KEY_ROTATION, genesis.id, statement)
    return KeyRotation(1, new.public, proof)


class Validating(World):
    """`count` validators of weight 10 with bonds of 10,000 BLY, and everybody is rich.

    An epoch is an hour, and money is not paid out in rewards.
    """

    def __init__(
        self, count: int = 4, parameters: Parameters | None = None, **named: int
    ) -> None:
        keys = [key(index) for index in range(count)]
        self.new = [key(("new", index)) for index in range(8)]
        values = dict(
            epoch_span_ms=HOUR_MS,
            validator_pool_micro=0,
            validator_bond_micro=1_000 * MICRO,
            bond_unit_micro=1_000 * MICRO,
        )
        values.update(named)
        super().__init__(
            count,
            validators=tuple(
                Validator(one.public, 10, tail_of(index))
                for index, one in enumerate(keys)
            ),
            participants=tuple(
                registration(one, bond_micro=BOND_MICRO) for one in keys
            ),
            balances=tuple(
                Balance(one.account, RICH_MICRO) for one in [*keys, *self.new]
            ),
            parameters=parameters or replace(DEVNET, work_bits=0),
            settings=tuple(
                Setting(name, value) for name, value in sorted(values.items())
            ),
        )
        self.asleep: set[bytes] = set()

    def signing(self) -> list[bytes]:
        """Return the keys that sign the next checkpoint."""
        return [member.key for member in signers(self.view)]

    def weights(self) -> dict[bytes, int]:
        """Return the set appointed last."""
        return dict(successors(self.view).weights)

    def checkpoint(self, *blocks: Any, **more: Any) -> Any:
        """Execute a checkpoint that whoever is awake signs."""
        awake = [m.key for m in predecessors(self.view) if m.key not in self.asleep]
        more.setdefault("signers", [_Named(one) for one in awake])
        more.setdefault("proposer", _Named(self.signing()[0]))
        return super().checkpoint(*blocks, **more)

    def epoch(self, *blocks: Any, steps: int = 4) -> list[Any]:
        """Go to the end of the epoch, in a few checkpoints; blocks are in the first."""
        number = running(self.view).number
        outcomes = self.checkpoint(*blocks, step_ms=1)
        while running(self.view).number == number:
            self.checkpoint(step_ms=HOUR_MS // steps)
        return outcomes

    def purse(self, who: SigningKey, purse: Purse = Purse.BOND) -> int:
        return amount(self.view, who.account, purse)

    def vote(
        self, who: SigningKey, choice: bytes | None, height: int = 1, **changed: Any
    ) -> Vote:
        """Return a precommit."""
        fields = dict(stage=VoteStage.PRECOMMIT, round=0, checkpoint=choice)
        statement = VoteStatement(version=1, height=height, **{**fields, **changed})
        signature = who.sign(Purpose.CHECKPOINT_VOTE, self.genesis.id, statement)
        return Vote(statement, who.public, signature)

    def proposal(
        self, who: SigningKey, choice: bytes, height: int = 1
    ) -> SignedProposal:
        """Return a signed proposal."""
        statement = ProposalStatement(1, height, 0, None, choice)
        signature = who.sign(Purpose.CHECKPOINT_PROPOSAL, self.genesis.id, statement)
        return SignedProposal(statement, who.public, signature)

    def enlist(self, who: SigningKey, bond: int = BOND_MICRO, **changed: Any) -> Any:
        """Return a registration of somebody who wants to validate."""
        changed.setdefault("roles", ROLES)
        changed.setdefault("beacon_tail", tail_of(who.public))
        return registration(who, bond_micro=bond, **changed)


class _Named:
    """A key of which only the public half matters."""

    def __init__(self, public: bytes) -> None:
        self.public = public
